// A pass of the mLSTM in float32 arithmetic, token by token as in the definition. A block takes a
// head through a chunk for 32 of its values; a warp has 4 of these, and its lanes share the keys of
// the state, which stays in registers.
#include "core/round.h"
#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kWarps = kMlstmPassWarps, kThreads = kMlstmPassThreads;
constexpr int kColumns = 4, kBlockValues = kWarps * kColumns;

// What a token leaves of the state: the sum of both, of which `whole` is 0 or 1. Thus neither a
// small part that is kept nor a small one that is lost is rounded off beside the other.
struct Decay {
  float whole, part;

  __device__ __forceinline__ float operator()(float element) const {
    return fmaf(part, element, whole * element);
  }
};

// kRows: keys that a lane has, lane + 32 i.
template <int kRows>
__global__ void __launch_bounds__(kThreads)
    MlstmPlainKernel(const MlstmLayout sizes, const MlstmPass<float> pass) {
  // Tokens in shared memory.
  constexpr int kKeys = 32 * kRows, kStaged = kRows > 16 ? 4 : kRows > 8 ? 8 : 16;
  __shared__ float q[kStaged][kKeys], k[kStaged][kKeys], v[kStaged][kBlockValues];
  __shared__ float sees[kStaged], seen[kStaged], extra_sees[kStaged], extra_seen[kStaged];
  __shared__ Decay decays[kStaged];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int head = static_cast<int>(blockIdx.x), chunk = static_cast<int>(blockIdx.y);
  const int value_begin = static_cast<int>(blockIdx.z) * kBlockValues;
  const int chunk_tokens = sizes.chunk_tiles * kMlstmTile;
  const int begin = chunk * chunk_tokens, tokens = min(sizes.tokens - begin, chunk_tokens);
  const bool outputs = pass.o != nullptr, extra = pass.extra_seen != nullptr;
  const int64_t states = static_cast<int64_t>(head) * sizes.chunks + chunk;
  // The token that the pass comes to as the i-th.
  const auto token_at = [&](int i) { return begin + (pass.reverse ? tokens - 1 - i : i); };

  float state[kRows][kColumns] = {}, extra_state[kColumns] = {};
  // Calls body(element of the state, where it lies in memory) for those that exist.
  const auto for_state = [&](const auto& body) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int key = lane + 32 * i, value = value_begin + warp * kColumns + j;
        if (key >= pass.keys || value >= pass.values) continue;
        body(state[i][j], key * pass.key_stride + value * pass.value_stride);
      }
    }
  };
  if (pass.entering != nullptr) {
    const float* from = pass.entering + states * pass.keys * pass.values;
    for_state([&](float& element, int at) { element = from[at]; });
  }
  if (extra && pass.entering_extra != nullptr) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int value = value_begin + warp * kColumns + j;
      if (value < pass.values) extra_state[j] = pass.entering_extra[states * pass.values + value];
    }
  }

  const auto at_restart = [&](int token) {
    if (token % kMlstmTile != 0 && token != sizes.tokens) return;
    const MlstmShare share{head, static_cast<int>(blockIdx.z), static_cast<int>(gridDim.z),
                           lane == 0};
    AtRestart(sizes, pass, CeilDiv(token, kMlstmTile), share, state, extra_state);
  };
  for (int first = 0; first < tokens; first += kStaged) {
    const int n = min(kStaged, tokens - first);
    __syncthreads();
    for (int i = thread; i < n * kKeys; i += kThreads) {
      const int row = i / kKeys, key = i % kKeys;
      const int64_t at = sizes.Row(head, token_at(first + row)) * pass.keys + key;
      const bool exists = key < pass.keys;
      k[row][key] = exists ? pass.k[at] : 0.0f;
      q[row][key] = exists && outputs ? pass.q[at] : 0.0f;
    }
    for (int i = thread; i < n * kBlockValues; i += kThreads) {
      const int row = i / kBlockValues, value = value_begin + i % kBlockValues;
      const int64_t at = sizes.Row(head, token_at(first + row)) * pass.values + value;
      const bool exists = value < pass.values;
      v[row][i % kBlockValues] = !exists ? 0.0f : pass.v != nullptr ? pass.v[at] : 1.0f;
    }
    if (thread < n) {
      const int64_t at = head * sizes.padded() + token_at(first + thread);
      sees[thread] = outputs ? pass.sees[at] : 0.0f;
      seen[thread] = pass.seen[at];
      extra_sees[thread] = outputs && extra ? pass.extra_sees[at] : 0.0f;
      extra_seen[thread] = extra ? pass.extra_seen[at] : 0.0f;
      decays[thread] = {pass.decay_whole[at], pass.decay_part[at]};
    }
    __syncthreads();
    for (int t = 0; t < n; ++t) {
      at_restart(token_at(first + t) + (pass.reverse ? 1 : 0));
      // The decay lies before the token's own term in time, and so after it backward in time.
      const Decay none{1.0f, 0.0f};
      const Decay before = pass.reverse ? none : decays[t], after = pass.reverse ? decays[t] : none;
      float sums[kColumns] = {}, weighted[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float value = v[t][warp * kColumns + j];
        weighted[j] = seen[t] * value;
        extra_state[j] = fmaf(extra_seen[t], value, before(extra_state[j]));
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float key = k[t][lane + 32 * i], query = q[t][lane + 32 * i];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const float now = fmaf(key, weighted[j], before(state[i][j]));
          sums[j] = fmaf(query, now, sums[j]);
          state[i][j] = after(now);
        }
      }
      float mine = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (outputs) {
          const float sum = fmaf(sees[t], WarpSum(sums[j]), extra_sees[t] * extra_state[j]);
          if (lane == j) mine = sum;
        }
        extra_state[j] = after(extra_state[j]);
      }
      const int value = value_begin + warp * kColumns + lane, token = token_at(first + t);
      if (outputs && lane < kColumns && value < pass.values) {
        const float factor =
            pass.factor != nullptr ? pass.factor[head * sizes.padded() + token] : 1.0f;
        pass.o[sizes.Row(head, token) * pass.values + value] = mine * factor;
      }
    }
  }
  const int boundary = pass.reverse ? begin : begin + tokens;
  if (StateLeaves(sizes, pass, CeilDiv(boundary, kMlstmTile))) at_restart(boundary);
  if (pass.leaving != nullptr) {
    float* to = pass.leaving + states * pass.keys * pass.values;
    for_state([&](float element, int at) { to[at] = element; });
  }
  if (extra && pass.leaving_extra != nullptr && lane == 0) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int value = value_begin + warp * kColumns + j;
      if (value < pass.values) pass.leaving_extra[states * pass.values + value] = extra_state[j];
    }
  }
}

}  // namespace

void MlstmPassPlain(const MlstmLayout& sizes, const MlstmPass<float>& pass) {
  const dim3 grid(static_cast<unsigned>(sizes.all_heads()), static_cast<unsigned>(sizes.chunks),
                  Pieces(pass.values, kBlockValues));
  const auto launch = [&](auto kernel) {
    Launch("mlstm pass", kernel, grid, dim3(kThreads), 0, sizes, pass);
  };
  if (pass.keys <= 32) {
    launch(MlstmPlainKernel<1>);
  } else if (pass.keys <= 128) {
    launch(MlstmPlainKernel<4>);
  } else if (pass.keys <= 256) {
    launch(MlstmPlainKernel<8>);
  } else if (pass.keys <= 512) {
    launch(MlstmPlainKernel<16>);
  } else {
    launch(MlstmPlainKernel<kMaxMlstmCudaWidth / 32>);
  }
}

}  // namespace eyrie
