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

// 2^l - 1 for l <= 0 with a small relative error: its Taylor series near zero, where the difference
// would cancel. Of the series, what is left out is below 1.1e-7 of the result.
__device__ __forceinline__ float DecayMinusOne(float l) {
  constexpr double k1 = 0.6931471805599453, k2 = k1 * k1 / 2, k3 = k2 * k1 / 3, k4 = k3 * k1 / 4,
                   k5 = k4 * k1 / 5;
  constexpr float c1 = k1, c2 = k2, c3 = k3, c4 = k4, c5 = k5;
  const float series = l * (c1 + l * (c2 + l * (c3 + l * (c4 + l * c5))));
  const float difference = Exp2(l) - 1;
  return l > -0.22f ? series : difference;
}

// 1 - a^2 of e = a - 1, without cancellation.
__device__ __forceinline__ float OneMinusSquare(float e) { return fmaf(-e, 1 + e, -e); }

// s -> a s + x. A document start has a = 0: it takes nothing of what came before, not even a NaN.
// With kInside no map is a document start.
struct alignas(8) Affine {
  float a, x;
};
template <bool kInside = false>
__device__ __forceinline__ float Apply(Affine map, float s) {
  return !kInside && map.a == 0 ? map.x : fmaf(map.a, s, map.x);
}
// The map that applies `first`, then `second`.
template <bool kInside = false>
__device__ __forceinline__ Affine Then(Affine first, Affine second) {
  return {!kInside && second.a == 0 ? 0 : second.a * first.a, Apply<kInside>(second, first.x)};
}

// What a token with these pre-activations does to the state. A position above 0 is inside a
// document, 0 starts one; below 0 is no token: u is 0 there and the state stays. With kInside the
// position is known to be above 0.
template <bool kInside>
__device__ __forceinline__ Affine TokenMap(float u, float zi, float zr, float rate, int position) {
  const float e = DecayMinusOne(rate * GateSigmoid(zr));
  const float x = GateSigmoid(zi) * u;
  if (kInside || position > 0) return {1 + e, SquareRoot(OneMinusSquare(e)) * x};
  return {position == 0 ? 0.0f : 1.0f, x};
}

// What it does to the carried gradient a_{t+1} delta_{t+1} on the way back, given e = a - 1. Where
// there is no token, dh is 0.
template <bool kInside>
__device__ __forceinline__ Affine TokenGradMap(float dh, float e, int position) {
  if (kInside) return {1 + e, (1 + e) * dh};
  const float a = position > 0 ? 1 + e : (position == 0 ? 0.0f : 1.0f);
  return {a, position == 0 ? 0 : a * dh};
}

// l = rate * r, the binary logarithm of the decay.
__device__ __forceinline__ float Rate(const float* lambda, int channel) {
  return -8 * kLog2E * Softplus(lambda[channel]);
}

}  // namespace eyrie::rg_lru
