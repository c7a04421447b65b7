// What the mLSTM computes over rows of its tensors, a warp for each, and along time for each head:
// the normaliser and its gradient, the states' scan over chunks, the gradients of the gates.
#include "core/early_launch.cuh"
#include "core/round.h"
#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The product of two rows, which a warp reads N elements at a time. In float32 terms may cancel far
// below its rounding: these are exact.
template <int N, class T, class U>
__device__ __forceinline__ float Dot(const T* a, const U* b, int width) {
  using Term = std::conditional_t<std::is_same_v<T, float>, double, float>;
  Term sum = 0;
  for (int i = static_cast<int>(threadIdx.x) % 32 * N; i < width; i += 32 * N) {
    const auto left = LoadVector<N>(a + i);
    const auto right = LoadVector<N>(b + i);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += Term{left[j]} * Term{right[j]};
  }
  return static_cast<float>(WarpSum(sum));
}

// A row of tensors [B, T, H, width], and where its token's vectors lie.
struct TokenRow {
  int64_t row, at;
  bool exists;
};
__device__ __forceinline__ TokenRow RowAt(const MlstmLayout& sizes, int64_t row) {
  const int64_t time = row / sizes.heads;
  const int64_t head = time / sizes.tokens * sizes.heads + row % sizes.heads;
  return {row, head * sizes.padded() + time % sizes.tokens,
          row < static_cast<int64_t>(sizes.all_heads()) * sizes.tokens};
}
__device__ __forceinline__ TokenRow RowOfWarp(const MlstmLayout& sizes) {
  return RowAt(sizes,
               static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32);
}

// 1 / b of a token; 1 where nothing is normalised.
template <class T>
__device__ __forceinline__ float Inverse(const MlstmDenominators<T>& in, float normaliser,
                                         int64_t row) {
  if (!in.normalised) return 1.0f;
  return 1.0f / (fmaxf(fabsf(normaliser), expf(-in.maximum[row])) + in.epsilon);
}

// A warp has a row, whose products it reads N elements at a time; or, where they are given or not
// wanted and N is 0, a thread has one.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    DenominatorKernel(const MlstmLayout sizes, const MlstmDenominators<T> in, float* inverse_b,
                      float* dnormaliser) {
  AwaitEarlier();
  const TokenRow token =
      N > 0 ? RowOfWarp(sizes)
            : RowAt(sizes, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (!token.exists) return;
  const float normaliser = in.normaliser[token.row], inverse = Inverse(in, normaliser, token.row);
  float gradient = 0.0f;
  if (dnormaliser != nullptr && in.normalised && in.gradient &&
      fabsf(normaliser) > expf(-in.maximum[token.row])) {
    float product;
    if constexpr (N > 0) {
      const int64_t first = token.row * sizes.values;
      product = Dot<N>(in.dh + first, in.h + first, sizes.values);
    } else {
      product = in.h_dh[token.row];
    }
    gradient = normaliser > 0.0f ? -product * inverse : product * inverse;
  }
  if (N > 0 && threadIdx.x % 32 != 0) return;
  inverse_b[token.at] = inverse;
  if (dnormaliser != nullptr) dnormaliser[token.at] = gradient;
}

// Adds what the states before tiles give to their tokens' normalisers. A block has a tile of a
// head, each of its warps, with the state in registers, so many of the tokens.
__global__ void __launch_bounds__(kThreads)
    NormaliserKernel(const MlstmLayout sizes, const __nv_bfloat16* q,
                     const MlstmNormaliserStates states, const float* before,
                     const MlstmDenominators<__nv_bfloat16> in, float* normaliser,
                     float* inverse_b) {
  AwaitEarlier();
  constexpr int kTokens = kMlstmTile / kWarps, kWidth = 8;
  constexpr int kVectors = static_cast<int>(kMaxMlstmCudaWidth) / (32 * kWidth);
  static_assert(kVectors * 32 * kWidth == kMaxMlstmCudaWidth);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.x) / sizes.tiles;
  const int tile = static_cast<int>(blockIdx.x) % sizes.tiles;
  const int first = tile * kMlstmTile + static_cast<int>(threadIdx.x) / 32 * kTokens;
  const float* state =
      states.states + (int64_t{head} * states.per_head + tile / states.tiles) * sizes.keys;
  Vector<float, 4> n[kVectors][2];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = (i * 32 + lane) * kWidth + 4 * half;
      n[i][half] = {};
      if (key < sizes.keys) n[i][half] = LoadVector<4>(state + key);
    }
  }
  float own = 0.0f;  // of token `first` + lane
#pragma unroll 4
  for (int j = 0; j < kTokens; ++j) {
    if (first + j >= sizes.tokens) break;
    const __nv_bfloat16* row = q + sizes.Row(head, first + j) * sizes.keys;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int key = (i * 32 + lane) * kWidth;
      if (key >= sizes.keys) continue;
      const auto keys = LoadVector<kWidth>(row + key);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sum = fmaf(keys[e], n[i][e / 4][e % 4], sum);
    }
    sum = WarpSum(sum);
    if (lane == j) own = sum;
  }
  const int token = first + lane;
  if (lane >= kTokens || token >= sizes.tokens) return;
  float log_decay = 0.0f;
  for (int i = tile / states.tiles * states.tiles; i < tile; ++i) {
    log_decay += states.log_decay[int64_t{head} * sizes.tiles + i];
  }
  const int64_t row = sizes.Row(head, token), at = head * sizes.padded() + token;
  const float further = states.further == nullptr ? 0.0f : states.further[at];
  const float whole = fmaf(before[at] * expf(log_decay), own, normaliser[row] + further);
  normaliser[row] = whole;
  inverse_b[at] = Inverse(in, whole, row);
}

// Adds up what slices of keys gave to outputs.
__global__ void __launch_bounds__(kThreads)
    SliceKernel(const MlstmLayout sizes, const MlstmPass<__nv_bfloat16> pass, int slices) {
  const TokenRow warp = RowOfWarp(sizes);
  if (!warp.exists) return;
  const int64_t all = static_cast<int64_t>(sizes.all_heads()) * sizes.tokens;
  const float factor = pass.factor != nullptr ? pass.factor[warp.at] : 1.0f;
  float product = 0.0f;
  for (int i = static_cast<int>(threadIdx.x) % 32 * 4; i < pass.values; i += 32 * 4) {
    Vector<float, 4> sum{};
#pragma unroll 4
    for (int slice = 0; slice < slices; ++slice) {
      const auto part = LoadVector<4>(pass.partial + (slice * all + warp.row) * pass.values + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum.values[j] += part[j];
    }
    if (pass.multiplied != nullptr) {
      const auto factors = LoadVector<4>(pass.multiplied + warp.row * pass.values + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) product = fmaf(sum.values[j], factors[j], product);
    }
    Vector<__nv_bfloat16, 4> rounded;
#pragma unroll
    for (int j = 0; j < 4; ++j) rounded.Set(j, sum.values[j] * factor);
    StoreVector(pass.o + warp.row * pass.values + i, rounded);
  }
  if (pass.multiplied == nullptr) return;
  product = WarpSum(product);
  if (threadIdx.x % 32 == 0) pass.products[warp.at] = product;
}

// Increments [B, H, pieces, size] become what enters each piece, of `tiles` tiles; `leaving`,
// unless null, is what leaves the last one.
__global__ void __launch_bounds__(kThreads)
    ScanKernel(const MlstmLayout sizes, const MlstmScan scan, const float* log_decay) {
  constexpr int kBatch = 8;  // loads in flight
  const int i = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  if (i >= scan.size) return;
  const int head = static_cast<int>(blockIdx.x);
  const int pieces = CeilDiv(sizes.tiles, scan.tiles);
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

__global__ void __launch_bounds__(kThreads)
    ProductsKernel(const MlstmLayout sizes, const MlstmRowProducts in) {
  const TokenRow warp = RowOfWarp(sizes);
  if (!warp.exists) return;
  const int64_t first = warp.row * sizes.keys;
  const float of_q = Dot<1>(in.q + first, in.dq + first, sizes.keys);
  const float of_k = Dot<1>(in.k + first, in.dk + first, sizes.keys);
  if (threadIdx.x % 32 != 0) return;
  in.query_products[warp.at] = of_q;
  in.key_products[warp.at] = of_k;
}

constexpr int kMaxGateThreads =
    std::max(kMaxMlstmRestartTiles, 2 * kMaxMlstmChunkTiles - 1) * kMlstmTile;
static_assert(kMaxGateThreads <= 1024);

// A sum over later tokens up to where their document or the interval ends, and its variance but for
// a factor.
struct LaterTokens {
  double sum, variance;
  int ends;  // 1: further tokens do not count

  __device__ void Add(const LaterTokens& later) {
    if (ends != 0) return;
    sum += later.sum;
    variance += later.variance;
    ends = later.ends;
  }
};
__device__ __forceinline__ LaterTokens OfLane(int lane, const LaterTokens& from) {
  return {__shfl_sync(0xffffffffu, from.sum, lane), __shfl_sync(0xffffffffu, from.variance, lane),
          __shfl_sync(0xffffffffu, from.ends, lane)};
}
// Lanes have successive tokens, the last one first.
__device__ __forceinline__ void ScanLaterTokens(int lane, LaterTokens& tokens) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const LaterTokens later = OfLane(max(lane - distance, 0), tokens);
    if (lane >= distance) tokens.Add(later);
  }
}

// A block has the tokens between two restarts (mlstm_kernels.cuh), at least a thread for each.
__global__ void __launch_bounds__(kMaxGateThreads)
    GateGradientKernel(const MlstmLayout sizes, const MlstmGateGradients in) {
  AwaitEarlier();
  __shared__ double parts[2][32];
  __shared__ LaterTokens warps[32];
  __shared__ double misses[kMaxGateThreads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int threads = static_cast<int>(blockDim.x);
  const int head = static_cast<int>(blockIdx.x), interval = static_cast<int>(blockIdx.y);
  const int begin = interval * sizes.restart_tiles * kMlstmTile;
  const bool last = interval == sizes.restarts - 1;
  const int end = last ? sizes.tokens : begin + sizes.restart_tiles * kMlstmTile;
  const auto passes_at = [&](int restart, double* shared) {
    const bool known = restart == 0 ? in.first : restart == sizes.restarts ? in.last : true;
    const float* products =
        in.restart_products +
        (static_cast<int64_t>(head) * (sizes.restarts + 1) + restart) * in.restart_parts;
    double sum = 0.0;
    for (int i = thread; known && i < in.restart_parts; i += threads) sum += products[i];
    if (in.end_products != nullptr && restart == sizes.restarts) {
      for (int i = thread; i < MlstmEndParts(sizes) * kMlstmTile; i += threads) {
        const int64_t at = MlstmEndAt(sizes, head, i / kMlstmTile);
        sum += in.end_products[at + kMlstmTile + i % kMlstmTile];
      }
    }
    return BlockSum(sum, shared);
  };
  const double at_begin = passes_at(interval, parts[0]), at_end = passes_at(interval + 1, parts[1]);

  const int token = end - 1 - thread;
  const bool exists = token >= begin;
  const int document = exists ? sizes.Document(head, token) : -1;
  double of_q = 0.0, of_k = 0.0;
  if (exists) {
#pragma unroll 4
    for (int i = 0; i < in.slices; ++i) {
      const int64_t at = (static_cast<int64_t>(head) * in.slices + i) * sizes.padded() + token;
      of_q += in.query_products[at];
      of_k += in.key_products[at];
    }
    const int in_last = token - (sizes.tiles - 1) * kMlstmTile;
    if (in.end_products != nullptr && in_last >= 0) {
      for (int i = 0; i < MlstmEndParts(sizes); ++i) {
        of_k += in.end_products[MlstmEndAt(sizes, head, i) + in_last];
      }
    }
  }
  const bool ends = exists && token + 1 < sizes.tokens && sizes.Document(head, token + 1) > token;
  LaterTokens mine{of_q - of_k, of_q * of_q + of_k * of_k, ends ? 1 : 0};
  ScanLaterTokens(lane, mine);
  if (lane == 31) warps[warp] = mine;
  __syncthreads();
  LaterTokens before = warps[min(lane, threads / 32 - 1)];
  ScanLaterTokens(lane, before);
  before = OfLane(max(warp - 1, 0), before);
  if (warp > 0) mine.Add(before);
  mine.Add({at_end, 0.0, 1});

  // The first token of the interval or of its document finds by how much the sum misses.
  const int first = max(begin, document);
  if (token == first) {
    const double exact = document == token ? 0.0 : at_begin;
    misses[thread] = mine.variance > 0.0 ? (mine.sum - exact) / mine.variance : 0.0;
  }
  __syncthreads();
  if (!exists) return;
  const int64_t row = sizes.Row(head, token);
  const double sum = mine.sum - misses[end - 1 - first] * mine.variance;
  in.dlog_i[row] = static_cast<float>(of_k);
  in.dlog_f[row] = document == token ? 0.0f : static_cast<float>(sum);
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
  if (dnormaliser == nullptr || in.h_dh != nullptr) {
    LaunchEarly("mlstm denominators", DenominatorKernel<T, 0>,
                Pieces(static_cast<int64_t>(sizes.all_heads()) * sizes.tokens, kThreads), kThreads,
                0, sizes, in, inverse_b, dnormaliser);
    return;
  }
  WithVectors<T>(sizes.values, {in.h, in.dh}, [&](auto n) {
    LaunchEarly("mlstm denominators", DenominatorKernel<T, n>, RowBlocks(sizes), kThreads, 0, sizes,
                in, inverse_b, dnormaliser);
  });
}
template void ComputeDenominators<float>(const MlstmLayout&, const MlstmDenominators<float>&,
                                         float*, float*);
template void ComputeDenominators<__nv_bfloat16>(const MlstmLayout&,
                                                 const MlstmDenominators<__nv_bfloat16>&, float*,
                                                 float*);

void AddStatesToNormalisers(const MlstmLayout& sizes, const __nv_bfloat16* q,
                            const MlstmNormaliserStates& states, const float* before,
                            const MlstmDenominators<__nv_bfloat16>& in, float* normaliser,
                            float* inverse_b) {
  LaunchEarly("mlstm normalisers", NormaliserKernel,
              dim3(static_cast<unsigned>(sizes.all_heads() * sizes.tiles)), kThreads, 0, sizes, q,
              states, before, in, normaliser, inverse_b);
}

void SumSlices(const MlstmLayout& sizes, const MlstmPass<__nv_bfloat16>& pass, int slices) {
  Launch("mlstm slices", SliceKernel, RowBlocks(sizes), kThreads, 0, sizes, pass, slices);
}

void ScanStates(const MlstmLayout& sizes, const MlstmScan& scan, const float* log_decay) {
  const dim3 grid(static_cast<unsigned>(sizes.all_heads()), Pieces(scan.size, kThreads));
  Launch("mlstm states", ScanKernel, grid, dim3(kThreads), 0, sizes, scan, log_decay);
}

void MultiplyRows(const MlstmLayout& sizes, const MlstmRowProducts& in) {
  Launch("mlstm gate products", ProductsKernel, RowBlocks(sizes), kThreads, 0, sizes, in);
}

void ComputeGateGradients(const MlstmLayout& sizes, const MlstmGateGradients& in) {
  const dim3 grid(static_cast<unsigned>(sizes.all_heads()), static_cast<unsigned>(sizes.restarts));
  const int of_last = sizes.tiles - (sizes.restarts - 1) * sizes.restart_tiles;
  const int threads = std::max(sizes.restart_tiles, of_last) * kMlstmTile;
  LaunchEarly("mlstm gate gradients", GateGradientKernel, grid,
              dim3(static_cast<unsigned>(threads)), 0, sizes, in);
}

}  // namespace eyrie
