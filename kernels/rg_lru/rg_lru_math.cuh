// Device code of the RG-LRU's arithmetic: the gates of one element, and the affine maps that a
// linear recurrence is made of. Everything is float32. The special function unit gives a result a
// quarter as often as other units, so what it is asked for is counted: here six a forward element.
#pragma once

#include "kernels/cuda_math.cuh"

namespace eyrie::rg_lru {

// 1/x and so on by one instruction of the special function unit, as Exp2.
__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float SquareRoot(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float InverseSquareRoot(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / (1 + exp(-x)); where the exponential overflows, 1 / infinity is the right zero.
__device__ __forceinline__ float GateSigmoid(float x) {
  return Reciprocal(1.0f + Exp2(-kLog2E * x));
}

// exp(l) - 1 for l <= 0 with a small relative error: its Taylor series near zero, where the
// difference would cancel. Of the series, what is left out is below 6e-8 of the result.
__device__ __forceinline__ float DecayMinusOne(float l) {
  const float series =
      l * (1 + l * (1.0f / 2 + l * (1.0f / 6 + l * (1.0f / 24 + l * (1.0f / 120 + l / 720)))));
  const float difference = Exp2(kLog2E * l) - 1;
  return l > -0.25f ? series : difference;
}

// 1 - a^2 of e = a - 1, without cancellation.
__device__ __forceinline__ float OneMinusSquare(float e) { return -e * (2 + e); }

// s -> a s + x. A document start has a = 0: it takes nothing of what came before, not even a NaN.
struct alignas(8) Affine {
  float a, x;
};
__device__ __forceinline__ float Apply(Affine map, float s) {
  return map.a == 0 ? map.x : fmaf(map.a, s, map.x);
}
// The map that applies `first`, then `second`.
__device__ __forceinline__ Affine Then(Affine first, Affine second) {
  return {second.a == 0 ? 0 : second.a * first.a, Apply(second, first.x)};
}

// What a token with these pre-activations does to the state. A position above 0 is inside a
// document, 0 starts one; below 0 is no token: u is 0 there and the state stays.
__device__ __forceinline__ Affine TokenMap(float u, float zi, float zr, float rate, int position) {
  const float e = DecayMinusOne(rate * GateSigmoid(zr));
  const float x = GateSigmoid(zi) * u;
  if (position > 0) return {1 + e, SquareRoot(OneMinusSquare(e)) * x};
  return {position == 0 ? 0.0f : 1.0f, x};
}

// What it does to the carried gradient a_{t+1} delta_{t+1} on the way back, given e = a - 1. Where
// there is no token, dh is 0.
__device__ __forceinline__ Affine TokenGradMap(float dh, float e, int position) {
  const float a = position > 0 ? 1 + e : (position == 0 ? 0.0f : 1.0f);
  return {a, position == 0 ? 0 : a * dh};
}

// l = rate * r.
template <class T>
__device__ __forceinline__ float Rate(const T* lambda, int channel) {
  return -8 * Softplus(ToFloat(lambda[channel]));
}

}  // namespace eyrie::rg_lru
