// Chunks of lightning attention in float32 arithmetic, token by token as in the definition. A block
// takes a head through a chunk for 32 of its values; a warp has 4 of these, and its lanes share the
// keys of the state, which stays in registers. For float32, for single tokens, and for widths that
// the tensor cores' body does not take.
#include "kernels/lightning_attention/lightning_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kColumns = 4, kBlockValues = kWarps * kColumns;
constexpr int kStaged = 16;  // tokens in shared memory at once

// kRows: keys that a lane has, lane + 32 i.
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads) LightningPlainKernel(const LightningView<T> view) {
  constexpr int kKeys = 32 * kRows;
  __shared__ float q[kStaged][kKeys], k[kStaged][kKeys], v[kStaged][kBlockValues];
  // One less than the decay between each token and the one in time before it: where that is nearly
  // one, its rounding would add up over the tokens.
  __shared__ float losses[kStaged];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int head = static_cast<int>(blockIdx.x), b = head / view.heads, h = head % view.heads;
  const int chunk = static_cast<int>(blockIdx.y);
  const int value_begin = static_cast<int>(blockIdx.z) * kBlockValues;
  const int begin = chunk * view.chunk, end = min(view.tokens, begin + view.chunk);
  const bool outputs = view.o != nullptr;
  const float loss_of_head = expm1f(-view.rate[h]);

  float state[kRows][kColumns] = {};
  // Calls body(element of the state, where it lies in memory) for those that exist.
  const auto for_state = [&](const auto& body) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int key = lane + 32 * i, value = value_begin + warp * kColumns + j;
        if (key >= view.keys || value >= view.values) continue;
        body(state[i][j], key * view.key_stride + value * view.value_stride);
      }
    }
  };
  if (view.entering != nullptr) {
    const float* from = view.entering + view.State(head, chunk);
    for_state([&](float& element, int at) { element = from[at]; });
  }

  for (int first = begin; first < end; first += kStaged) {
    const int n = min(kStaged, end - first);
    __syncthreads();
    for (int i = thread; i < n * kKeys; i += kThreads) {
      const int row = i / kKeys, key = i % kKeys;
      const int64_t at = view.Row(b, view.Token(first + row), h, view.keys) + key;
      const bool valid = key < view.keys;
      k[row][key] = valid ? ToFloat(view.k[at]) : 0.0f;
      q[row][key] = valid && outputs ? ToFloat(view.q[at]) : 0.0f;
    }
    for (int i = thread; i < n * kBlockValues; i += kThreads) {
      const int row = i / kBlockValues, value = value_begin + i % kBlockValues;
      const int64_t at = view.Row(b, view.Token(first + row), h, view.values) + value;
      v[row][i % kBlockValues] = value < view.values ? ToFloat(view.v[at]) : 0.0f;
    }
    if (thread < n) {
      const int token = view.Token(first + thread);
      losses[thread] = ReachesBack(token, view.Document(b, token)) ? loss_of_head : -1.0f;
    }
    __syncthreads();
    for (int t = 0; t < n; ++t) {
      // The decay lies before the token's own term in time, and so after it backward in time.
      const float loss = losses[t];
      float sums[kColumns] = {};
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float key = k[t][lane + 32 * i], query = q[t][lane + 32 * i];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const float before = view.reverse ? state[i][j] : fmaf(loss, state[i][j], state[i][j]);
          const float after = fmaf(key, v[t][warp * kColumns + j], before);
          sums[j] = fmaf(query, after, sums[j]);
          state[i][j] = view.reverse ? fmaf(loss, after, after) : after;
        }
      }
      if (!outputs) continue;
      float mine = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float sum = WarpSum(sums[j]);
        if (lane == j) mine = sum;
      }
      const int value = value_begin + warp * kColumns + lane;
      if (lane < kColumns && value < view.values) {
        view.o[view.Row(b, view.Token(first + t), h, view.values) + value] = FromFloat<T>(mine);
      }
    }
  }
  if (view.leaving != nullptr) {
    float* to = view.leaving + view.State(head, chunk);
    for_state([&](float element, int at) { to[at] = element; });
  }
}

}  // namespace

template <class T>
void LightningChunksPlain(const LightningView<T>& view, int sequences) {
  const dim3 grid(static_cast<unsigned>(sequences * view.heads), static_cast<unsigned>(view.chunks),
                  Pieces(view.values, kBlockValues));
  const auto launch = [&](auto kernel) {
    Launch("lightning_attention", kernel, grid, dim3(kThreads), 0, view);
  };
  if (view.keys <= 32) {
    launch(LightningPlainKernel<T, 1>);
  } else if (view.keys <= 64) {
    launch(LightningPlainKernel<T, 2>);
  } else if (view.keys <= 128) {
    launch(LightningPlainKernel<T, 4>);
  } else {
    launch(LightningPlainKernel<T, 8>);
  }
}

template void LightningChunksPlain<float>(const LightningView<float>&, int);
template void LightningChunksPlain<__nv_bfloat16>(const LightningView<__nv_bfloat16>&, int);

}  // namespace eyrie
