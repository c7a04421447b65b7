// Device code that kernels share: 16-byte vectors of either activation type, reductions over a warp
// and a block, the activation functions. Everything computes in float32.
#pragma once

#include "core/cuda.h"

namespace eyrie {

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// N elements that are loaded and stored at once; N * sizeof(T) bytes, at most 16, and aligned so.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  static_assert(N * sizeof(T) <= 16);
  T values[N];
  __device__ __forceinline__ float operator[](int i) const { return ToFloat(values[i]); }
  __device__ __forceinline__ void Set(int i, float x) { values[i] = FromFloat<T>(x); }
};
// As many as fill 16 bytes.
template <class T>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <int N, class T>
__device__ __forceinline__ Vector<T, N> LoadVector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
template <int N, class T>
__device__ __forceinline__ void StoreVector(T* to, const Vector<T, N>& vector) {
  *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

__device__ __forceinline__ float WarpSum(float x) {
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
  for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

// 1 / (1 + exp(-x)), without overflow: exp(88) is still finite in the denominator's place.
__device__ __forceinline__ float Sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
// log(1 + exp(x)), exact at both ends.
__device__ __forceinline__ float Softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(__expf(-fabsf(x)));
}

// Where 16-byte vectors may be used: the pointer is aligned and rows hold whole vectors.
template <class T>
bool FitsVectors(const void* pointer, int64_t row_elements) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && row_elements % kVectorWidth<T> == 0;
}

}  // namespace eyrie
