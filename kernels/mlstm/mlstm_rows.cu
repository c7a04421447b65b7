// What the mLSTM computes over rows of its tensors, a warp for each, and along time for each head:
// the normaliser and its gradient, the states' scan over chunks, the gradients of the gates.
#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The product of two rows, which a warp reads N elements at a time.
template <int N, class T, class U>
__device__ __forceinline__ float Dot(const T* a, const U* b, int width) {
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x) % 32 * N; i < width; i += 32 * N) {
    const auto left = LoadVector<N>(a + i);
    const auto right = LoadVector<N>(b + i);
#pragma unroll
    for (int j = 0; j < N; ++j) sum = fmaf(left[j], right[j], sum);
  }
  return WarpSum(sum);
}

// The row of tensors [B, T, H, width] that a warp has, and where its token's vectors lie.
struct WarpRow {
  int64_t row, at;
  bool exists;
};
__device__ __forceinline__ WarpRow RowOfWarp(const MlstmLayout& sizes) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int64_t time = row / sizes.heads;
  const int64_t head = time / sizes.tokens * sizes.heads + row % sizes.heads;
  return {row, head * sizes.padded() + time % sizes.tokens,
          row < static_cast<int64_t>(sizes.all_heads()) * sizes.tokens};
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    DenominatorKernel(const MlstmLayout sizes, const MlstmDenominators<T> in, float* inverse_b,
                      float* dnormaliser) {
  const WarpRow warp = RowOfWarp(sizes);
  if (!warp.exists) return;
  float inverse = 1.0f, gradient = 0.0f;
  if (in.normalised) {
    const float normaliser = in.normaliser[warp.row], least = expf(-in.maximum[warp.row]);
    inverse = 1.0f / (fmaxf(fabsf(normaliser), least) + in.epsilon);
    if (in.dh != nullptr && in.gradient && fabsf(normaliser) > least) {
      const int64_t first = warp.row * sizes.values;
      const float product = Dot<N>(in.dh + first, in.h + first, sizes.values) * inverse;
      gradient = normaliser > 0.0f ? -product : product;
    }
  }
  if (threadIdx.x % 32 != 0) return;
  inverse_b[warp.at] = inverse;
  if (in.dh != nullptr) dnormaliser[warp.at] = gradient;
}

// Adds what the state before each tile gives to its tokens' normalisers.
__global__ void __launch_bounds__(kThreads)
    NormaliserKernel(const MlstmLayout sizes, const __nv_bfloat16* q, const float* states,
                     const float* before, float* normaliser) {
  const WarpRow warp = RowOfWarp(sizes);
  if (!warp.exists) return;
  const int64_t tile = warp.at / kMlstmTile;  // of all heads' tiles
  const float sum = Dot<4>(q + warp.row * sizes.keys, states + tile * sizes.keys, sizes.keys);
  if (threadIdx.x % 32 == 0) {
    normaliser[warp.row] = fmaf(before[warp.at], sum, normaliser[warp.row]);
  }
}

// Increments [B, H, pieces, size] become what enters each piece, of `tiles` tiles; `leaving`,
// unless null, is what leaves the last one.
__global__ void __launch_bounds__(kThreads)
    ScanKernel(const MlstmLayout sizes, const MlstmScan scan, const float* log_decay) {
  constexpr int kBatch = 8;  // loads in flight
  const int i = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (i >= scan.size) return;
  const int head = static_cast<int>(blockIdx.x);
  const int pieces = (sizes.tiles + scan.tiles - 1) / scan.tiles;
  const float* decays = log_decay + static_cast<int64_t>(head) * sizes.tiles;
  float* places = scan.states + static_cast<int64_t>(head) * pieces * scan.size + i;
  const int64_t at = static_cast<int64_t>(head) * scan.size + i;
  float state = scan.entering == nullptr ? 0.0f : scan.entering[at];
  for (int first = 0; first < pieces; first += kBatch) {
    float increments[kBatch], decay[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (first + j >= pieces) continue;
      const int piece = scan.reverse ? pieces - 1 - first - j : first + j;
      increments[j] = places[static_cast<int64_t>(piece) * scan.size];
      float sum = 0.0f;
      const int end = min(sizes.tiles, (piece + 1) * scan.tiles);
      for (int tile = piece * scan.tiles; tile < end; ++tile) sum += decays[tile];
      decay[j] = expf(sum);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (first + j >= pieces) continue;
      const int piece = scan.reverse ? pieces - 1 - first - j : first + j;
      places[static_cast<int64_t>(piece) * scan.size] = state;
      state = fmaf(decay[j], state, increments[j]);
    }
  }
  if (scan.leaving != nullptr) scan.leaving[at] = state;
}

// The sum over the elements of a head's two states, c and n.
__global__ void __launch_bounds__(1024)
    StateProductKernel(const float* c, const float* dc, int c_size, const float* n, const float* dn,
                       int n_size, float* product) {
  __shared__ double parts[32];
  const int64_t head = blockIdx.x;
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < c_size; i += 1024) {
    sum += static_cast<double>(c[head * c_size + i]) * dc[head * c_size + i];
  }
  for (int i = static_cast<int>(threadIdx.x); i < n_size; i += 1024) {
    sum += static_cast<double>(n[head * n_size + i]) * dn[head * n_size + i];
  }
  sum = BlockSum(sum, parts);
  if (threadIdx.x == 0) product[head] = static_cast<float>(sum);
}

// k . dk, and by how much q . dq exceeds it.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    ProductsKernel(const MlstmLayout sizes, const MlstmGateGradients<T> in, float* excess) {
  const WarpRow warp = RowOfWarp(sizes);
  if (!warp.exists) return;
  const int64_t first = warp.row * sizes.keys;
  const float of_k = Dot<N>(in.k + first, in.dk + first, sizes.keys);
  const float of_q = Dot<N>(in.q + first, in.dq + first, sizes.keys);
  if (threadIdx.x % 32 != 0) return;
  in.dlog_i[warp.row] = of_k;
  excess[warp.at] = of_q - of_k;
}

// A gate's decay lies between all earlier and all later tokens of its document: its gradient is the
// sum of the excess over the token and those after it, and what leaves with the state after all.
__global__ void __launch_bounds__(1024)
    ForgetGradientKernel(const MlstmLayout sizes, const float* excess, const float* boundary,
                         float* dlog_f) {
  __shared__ double sums[32];
  __shared__ int ends[32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int head = static_cast<int>(blockIdx.x);
  double carried = boundary != nullptr ? boundary[head] : 0.0;
  // Sums of later tokens first, from where a document ends: such a map is x -> end ? sum : x + sum.
  const auto compose = [](double& sum, int& end, double later_sum, int later_end) {
    if (end == 0) sum += later_sum;
    end |= later_end;
  };
  const auto scan = [&](double& sum, int& end) {
    for (int distance = 1; distance < 32; distance *= 2) {
      const double later_sum = __shfl_up_sync(0xffffffffu, sum, distance);
      const int later_end = __shfl_up_sync(0xffffffffu, end, distance);
      if (lane >= distance) compose(sum, end, later_sum, later_end);
    }
  };
  for (int done = 0; done < sizes.tokens; done += 1024) {
    const int token = sizes.tokens - 1 - done - thread;
    const bool exists = token >= 0;
    const bool starts = exists && sizes.Document(head, token) == token;
    double sum = exists ? excess[head * sizes.padded() + token] : 0.0;
    int end = exists && token + 1 < sizes.tokens && sizes.Document(head, token + 1) == token + 1;
    scan(sum, end);
    __syncthreads();  // of the round before, all have read the warps' sums
    if (lane == 31) {
      sums[warp] = sum;
      ends[warp] = end;
    }
    __syncthreads();
    double total = sums[lane];
    int any_end = ends[lane];
    scan(total, any_end);
    if (warp > 0) {
      compose(sum, end, __shfl_sync(0xffffffffu, total, warp - 1),
              __shfl_sync(0xffffffffu, any_end, warp - 1));
    }
    compose(sum, end, carried, 0);
    if (exists) dlog_f[sizes.Row(head, token)] = starts ? 0.0f : static_cast<float>(sum);
    const double last_sum = __shfl_sync(0xffffffffu, total, 31);
    carried = __shfl_sync(0xffffffffu, any_end, 31) != 0 ? last_sum : last_sum + carried;
  }
}

unsigned RowBlocks(const MlstmLayout& sizes) {
  return Pieces(static_cast<int64_t>(sizes.all_heads()) * sizes.tokens, kWarps);
}

// Calls body(constant) with the elements that rows of `width` at these addresses can be read in.
template <class T, class Body>
void WithVectors(int width, std::initializer_list<const T*> rows, const Body& body) {
  if (AllFitVectors<T>(width, rows)) {
    body(std::integral_constant<int, kVectorWidth<T>>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

}  // namespace

template <class T>
void ComputeDenominators(const MlstmLayout& sizes, const MlstmDenominators<T>& in, float* inverse_b,
                         float* dnormaliser) {
  WithVectors<T>(sizes.values, {in.h, in.dh}, [&](auto n) {
    Launch("mlstm denominators", DenominatorKernel<T, n>, RowBlocks(sizes), kThreads, 0, sizes, in,
           inverse_b, dnormaliser);
  });
}
template void ComputeDenominators<float>(const MlstmLayout&, const MlstmDenominators<float>&,
                                         float*, float*);
template void ComputeDenominators<__nv_bfloat16>(const MlstmLayout&,
                                                 const MlstmDenominators<__nv_bfloat16>&, float*,
                                                 float*);

void AddStatesToNormalisers(const MlstmLayout& sizes, const __nv_bfloat16* q, const float* states,
                            const float* before, float* normaliser) {
  Launch("mlstm normalisers", NormaliserKernel, RowBlocks(sizes), kThreads, 0, sizes, q, states,
         before, normaliser);
}

void ScanStates(const MlstmLayout& sizes, const MlstmScan& scan, const float* log_decay) {
  const dim3 grid(static_cast<unsigned>(sizes.all_heads()), Pieces(scan.size, kThreads));
  Launch("mlstm states", ScanKernel, grid, dim3(kThreads), 0, sizes, scan, log_decay);
}

void MultiplyStates(const MlstmLayout& sizes, const float* c, const float* dc, const float* n,
                    const float* dn, float* product) {
  Launch("mlstm state product", StateProductKernel, static_cast<unsigned>(sizes.all_heads()), 1024,
         0, c, dc, sizes.keys * sizes.values, n, dn, sizes.keys, product);
}

template <class T>
void ComputeGateGradients(const MlstmLayout& sizes, const MlstmGateGradients<T>& in,
                          const float* boundary, float* excess) {
  WithVectors<T>(sizes.keys, {in.q, in.k, in.dq, in.dk}, [&](auto n) {
    Launch("mlstm gate products", ProductsKernel<T, n>, RowBlocks(sizes), kThreads, 0, sizes, in,
           excess);
  });
  Launch("mlstm forget gradients", ForgetGradientKernel, static_cast<unsigned>(sizes.all_heads()),
         1024, 0, sizes, excess, boundary, in.dlog_f);
}
template void ComputeGateGradients<float>(const MlstmLayout&, const MlstmGateGradients<float>&,
                                          const float*, float*);
template void ComputeGateGradients<__nv_bfloat16>(const MlstmLayout&,
                                                  const MlstmGateGradients<__nv_bfloat16>&,
                                                  const float*, float*);

}  // namespace eyrie
