// What the convolution's CUDA bodies share. A thread takes four neighbouring channels of one
// sequence (one, where rows are not made of vectors) through a span of tokens, a few at a time, and
// keeps the rows that the next tokens need in registers: each row is read from memory once, but for
// the few at the seams of spans, which are in a cache. B sequences, T tokens, C channels, K taps.
//
// Kernels are compiled for up to 4 and up to 8 taps; taps beyond K are never live.
#pragma once

#include "core/early_launch.cuh"
#include "core/round.h"
#include "kernels/causal_conv1d/causal_conv1d_cuda.h"
#include "kernels/cuda_math.cuh"

namespace eyrie::causal_conv1d {

struct Sizes {
  int batch, time, channels, taps, span;
};

// Row j of the sequence [state; rows] for this thread's channels: rows [0, T), and the state's K-1
// rows as j in [1-K, 0). Zeros elsewhere and for a state that is absent.
template <class T, int N>
class ThreadRows {
 public:
  __device__ ThreadRows(const Sizes& sizes, const T* rows, const T* state, int64_t b, int64_t c)
      : rows_(rows + b * sizes.time * sizes.channels + c),
        state_(state == nullptr ? nullptr
                                : state + (b + 1) * (sizes.taps - 1) * sizes.channels + c),
        time_(sizes.time),
        channels_(sizes.channels),
        history_(sizes.taps - 1) {}
  __device__ __forceinline__ Vector<T, N> operator[](int j) const {
    if (j >= 0) return Token(j);
    const bool exists = j >= -history_ && state_ != nullptr;
    return exists ? LoadVector<N>(state_ + int64_t{j} * channels_) : Zeros();
  }
  // The same for j >= 0.
  __device__ __forceinline__ Vector<T, N> Token(int j) const {
    return j < time_ ? LoadVector<N>(rows_ + int64_t{j} * channels_) : Zeros();
  }
  // Calls body(i, place) with the places of rows [j, j + kCount), j in [0, T), in memory; past the
  // last row that one's again. No branch comes between them, so that all are under way at once.
  template <int kCount, class Body>
  __device__ __forceinline__ void ForRows(int j, const Body& body) const {
    const int last = time_ - 1 - j;
    const T* rows = rows_ + int64_t{j} * channels_;
#pragma unroll
    for (int i = 0; i < kCount; ++i) body(i, rows + min(i, last) * channels_);
  }
  template <int kCount>
  __device__ __forceinline__ void Load(int j, Vector<T, N>* to) const {
    ForRows<kCount>(j, [&](int i, const T* row) { to[i] = LoadVector<N>(row); });
  }

 private:
  __device__ __forceinline__ static Vector<T, N> Zeros() {
    Vector<T, N> zeros;
#pragma unroll
    for (int v = 0; v < N; ++v) zeros.Set(v, 0);
    return zeros;
  }

  const T *rows_, *state_;
  int time_, channels_, history_;
};

// How many tokens back each of the tokens [first, first + count) sees; -1 past the last token.
// Called by the whole block.
__device__ __forceinline__ void LoadLive(const Sizes& sizes, const int* positions, int64_t b,
                                         int first, int count, int* live) {
  for (int i = threadIdx.y * kLanes + threadIdx.x; i < count; i += kLanes * kWalkers) {
    const int t = first + i;
    live[i] = t < sizes.time ? min(sizes.taps - 1, positions[b * sizes.time + t]) : -1;
  }
  __syncthreads();
}

// Whether the first kCount of `values` all are `value`.
template <int kCount>
__device__ __forceinline__ bool AllEqual(const int* values, int value) {
  bool equal = true;
#pragma unroll
  for (int i = 0; i < kCount; ++i) equal &= values[i] == value;
  return equal;
}

template <class T, int N>
__device__ __forceinline__ Vector<T, N> Rounded(const float (&values)[N]) {
  Vector<T, N> vector;
  if constexpr (N == 1) {
    vector.Set(0, values[0]);
  } else {
#pragma unroll
    for (int v = 0; v < N; v += 2) vector.SetPair(v, values[v], values[v + 1]);
  }
  return vector;
}

// weights[s] multiplies the token s back; 0 beyond K.
template <int kTaps, class T, int N>
__device__ __forceinline__ void LoadWeights(const Sizes& sizes, const T* weight, int64_t c,
                                            float (&weights)[kTaps][N]) {
#pragma unroll
  for (int s = 0; s < kTaps; ++s) {
    const bool exists = s < sizes.taps;
    Vector<T, N> row;
    if (exists) row = LoadVector<N>(weight + (sizes.taps - 1 - s) * sizes.channels + c);
#pragma unroll
    for (int v = 0; v < N; ++v) weights[s][v] = exists ? row[v] : 0;
  }
}

inline Sizes SizesOf(const Tensor& x, const Tensor& weight) {
  return {static_cast<int>(x.dim(0)), static_cast<int>(x.dim(1)), static_cast<int>(x.dim(2)),
          static_cast<int>(weight.dim(0)), Span(x.dim(0), x.dim(1), x.dim(2))};
}

// Launches `kernel`, which takes `width` channels a thread and `shared` bytes of shared memory.
template <class Kernel, class Tensors>
void LaunchSpans(const char* name, Kernel kernel, const Sizes& sizes, int width, size_t shared,
                 const Tensors& tensors) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(sizes.channels, kLanes * width)),
                  static_cast<unsigned>(TimeBlocks(sizes.time, sizes.span)),
                  static_cast<unsigned>(sizes.batch));
  LaunchEarly(name, kernel, grid, dim3(kLanes, kWalkers), shared, sizes, tensors);
}

// Calls body(taps, width, silu) with all as constants: what the kernel is compiled for.
template <class Body>
void DispatchWidth(int taps, bool vectors, bool silu, const Body& body) {
  const auto with_silu = [&](auto max_taps, auto width) {
    if (silu) {
      body(max_taps, width, std::true_type{});
    } else {
      body(max_taps, width, std::false_type{});
    }
  };
  const auto with_width = [&](auto max_taps) {
    if (vectors) {
      with_silu(max_taps, std::integral_constant<int, kWidth>{});
    } else {
      with_silu(max_taps, std::integral_constant<int, 1>{});
    }
  };
  if (taps <= 4) {
    with_width(std::integral_constant<int, 4>{});
  } else {
    with_width(std::integral_constant<int, 8>{});
  }
}

}  // namespace eyrie::causal_conv1d
