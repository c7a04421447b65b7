// Device code that kernels share: 16-byte vectors of either activation type, reductions over a warp
// and a block, the activation functions. Everything computes in float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "core/numbers.cuh"
#include "core/round.h"

namespace eyrie {

// N elements that are loaded and stored at once; N * sizeof(T) bytes, at most 16, and aligned so.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  static_assert(N * sizeof(T) <= 16);
  T values[N];
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16> && N % 2 == 0) {
      // The upper half of a float32, out of the word of two: one instruction each.
      uint32_t pair;
      memcpy(&pair, values + i / 2 * 2, sizeof(pair));
      return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    } else {
      return ToFloat(values[i]);
    }
  }
  __device__ __forceinline__ void Set(int i, float x) { values[i] = FromFloat<T>(x); }
  // Elements i, even, and i + 1: one instruction rounds both to bfloat16.
  __device__ __forceinline__ void SetPair(int i, float x, float y) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      reinterpret_cast<__nv_bfloat162*>(values)[i / 2] = __floats2bfloat162_rn(x, y);
    } else {
      Set(i, x);
      Set(i + 1, y);
    }
  }
};
// As many as fill 16 bytes.
template <class T>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <int N, class T>
__device__ __forceinline__ Vector<T, N> LoadVector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
// As one word: assigned as it is, the compiler may store a vector element by element.
template <int N, class T>
__device__ __forceinline__ void StoreVector(T* to, const Vector<T, N>& vector) {
  constexpr size_t kBytes = N * sizeof(T);
  using Word = std::conditional_t<
      kBytes == 16, uint4,
      std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
  static_assert(sizeof(Word) == kBytes);
  Word word;
  memcpy(&word, &vector, kBytes);
  *reinterpret_cast<Word*>(to) = word;
}

// Calls body(constant) with `condition` as a compile-time constant.
template <class Body>
__device__ __forceinline__ void WithConstant(bool condition, const Body& body) {
  if (condition) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

template <class T>
__device__ __forceinline__ T WarpSum(T x) {
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
  for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}
// Over a block of whole warps; every thread gets the result. `shared` holds 32 elements and may be
// written again after the next barrier.
template <class T>
__device__ __forceinline__ T BlockSum(T x, T* shared) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  x = WarpSum(x);
  if (lane == 0) shared[thread / 32] = x;
  __syncthreads();
  return WarpSum(lane < static_cast<int>(blockDim.x) / 32 ? shared[lane] : T(0));
}
__device__ __forceinline__ float BlockMax(float x, float* shared) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  x = WarpMax(x);
  if (lane == 0) shared[thread / 32] = x;
  __syncthreads();
  return WarpMax(shared[lane < static_cast<int>(blockDim.x) / 32 ? lane : 0]);
}

// 2^x by one instruction of the special function unit, to within 2 units in the last place;
// denormal numbers count as zero.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// 1 / x by one such instruction; 0 for infinity.
__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / (1 + exp(-x)); where the exponential overflows, 1 / infinity is the right zero.
__device__ __forceinline__ float Sigmoid(float x) { return Reciprocal(1.0f + Exp2(-kLog2E * x)); }
// log(1 + exp(x)), exact at both ends. With e = exp(-|x|) <= 1, log(1 + e) / e is a polynomial in e
// that meets it at the Chebyshev points of [0, 1]: within 2e-7 of it, roundings included.
__device__ __forceinline__ float Softplus(float x) {
  const float e = Exp2(-kLog2E * fabsf(x));
  float ratio = 0.00512610236f;
  ratio = fmaf(ratio, e, -0.0290740654f);
  ratio = fmaf(ratio, e, 0.0775160864f);
  ratio = fmaf(ratio, e, -0.136022478f);
  ratio = fmaf(ratio, e, 0.190768808f);
  ratio = fmaf(ratio, e, -0.248353988f);
  ratio = fmaf(ratio, e, 0.333181202f);
  ratio = fmaf(ratio, e, -0.499994457f);
  ratio = fmaf(ratio, e, 0.99999994f);
  return fmaf(ratio, e, fmaxf(x, 0.0f));
}

// Where 16-byte vectors may be used: the pointer is aligned and rows hold whole vectors.
template <class T>
bool FitsVectors(const void* pointer, int64_t row_elements) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_elements % kVectorWidth<T> == 0;
}
// Whether that holds for all of several tensors; absent ones (null) are no obstacle.
template <class T>
bool AllFitVectors(int64_t row_elements, std::initializer_list<const T*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [&](const T* pointer) { return FitsVectors<T>(pointer, row_elements); });
}

// Where vectors of N elements may be used at these addresses.
template <int N, class... T>
bool Aligned(const T*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % (N * sizeof(T)) == 0) && ...);
}

// Pieces of `each` that cover `count`: a number of blocks.
inline unsigned Pieces(int64_t count, int64_t each) {
  return static_cast<unsigned>(CeilDiv(count, each));
}

}  // namespace eyrie
