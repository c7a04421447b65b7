// Sums over the channels of a warp, for the gradients of B and C. A lane holds eight states of one
// channel; kSplit lanes, 32 / kSplit apart, share a channel. So the eight values of a token that
// each lane has are 8 kSplit sums over 32 / kSplit lanes.
//
// The tensor cores make the first step, sums over four neighbouring lanes, by products of [16, 8]
// by [8, 8] matrices, mma.sync.m16n8k8: the lanes' values are the first matrix, two of its rows for
// each four lanes, and the second one, of ones and zeros, places their sums in two of eight
// columns. The values of two tokens fill the columns. Then lanes swap what others are to add up.
// Operands count with tf32's 11 bits, the rest is cut off: enough for what becomes bfloat16. For
// float32, what was cut off is added by a second product, and sums have 22 bits.
#pragma once

#include <cstdint>

#include "kernels/cuda_math.cuh"
#include "kernels/selective_scan/selective_scan_plan.h"

namespace eyrie::selective_scan {

// c += a b, of a whole warp. With g = lane / 4 and q = lane % 4, the lane gives a[g][q],
// a[g + 8][q], a[g][q + 4], a[g + 8][q + 4], b[q][g] and b[q + 4][g]; it has c[g][2q],
// c[g][2q + 1] and the same of row g + 8.
__device__ __forceinline__ void MmaTf32(float (&c)[4], float a0, float a1, float a2, float a3,
                                        float b0, float b1) {
  const auto bits = [](float x) { return __float_as_uint(x); };
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(bits(a0)), "r"(bits(a1)), "r"(bits(a2)), "r"(bits(a3)), "r"(bits(b0)), "r"(bits(b1)));
}

// The sums of two neighbouring tokens, the even one and the odd one.
template <int kSplit, bool kExact>
class ChannelSum {
 public:
  // Sums that a lane gets of its token. Where kSplit is 1, half of the lanes get copies.
  static constexpr int kCount = kSplit == 8 ? 4 : kSplit == 4 ? 2 : 1;

  // Which lane gets a token's sum of a state, and as which of its sums.
  struct Location {
    int lane, index;
  };
  __device__ static Location Find(bool odd, int state) {
    const int part = state / kLaneStates * (32 / kSplit), i = state % 4;
    const int lane = part + (odd ? 2 : 0) + state % kLaneStates / 4;
    if constexpr (kSplit == 8) return {lane, i};
    if constexpr (kSplit == 4) return {lane + i / 2 * 4, i % 2};
    return {lane + i / 2 * 4 + i % 2 * 8, 0};
  }
  // Whether the lane gets sums of the odd token.
  __device__ static bool GetsOdd() { return (threadIdx.x & 2) != 0; }

  __device__ ChannelSum() {
#pragma unroll
    for (int column = 0; column < 8; ++column) {
      ones_[column] = threadIdx.x % 32 / 4 == column ? 1 : 0;
    }
  }

  // Adds a token's values.
  __device__ void Add(bool odd, const float (&values)[kLaneStates]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* v = values + 4 * half;
      const float* one = ones_ + (odd ? 4 : 0) + 2 * half;
      MmaTf32(sums_, v[0], v[2], v[1], v[3], one[0], one[1]);
      if constexpr (kExact) {
        MmaTf32(sums_, Rest(v[0]), Rest(v[2]), Rest(v[1]), Rest(v[3]), one[0], one[1]);
      }
    }
  }
  // The lane's sums of what was added since the last call.
  __device__ void Finish(float (&result)[kCount]) {
    if constexpr (kSplit < 8) Swap<4>(sums_[0], sums_[2]);
    if constexpr (kSplit < 8) Swap<4>(sums_[1], sums_[3]);
    if constexpr (kSplit < 4) Swap<8>(sums_[0], sums_[1]);
    if constexpr (kSplit == 1) sums_[0] += __shfl_xor_sync(~0u, sums_[0], 16);
#pragma unroll
    for (int i = 0; i < kCount; ++i) result[i] = sums_[i];
#pragma unroll
    for (float& sum : sums_) sum = 0;
  }

 private:
  // Lanes that differ in bit kBit add up `lower`, where it is clear, or `upper`, to `lower`.
  template <unsigned kBit>
  __device__ static void Swap(float& lower, float upper) {
    const bool set = (threadIdx.x & kBit) != 0;
    lower = (set ? upper : lower) + __shfl_xor_sync(~0u, set ? lower : upper, kBit);
  }
  // What the tensor cores cut off.
  __device__ static float Rest(float x) {
    return x - __uint_as_float(__float_as_uint(x) & 0xffffe000u);
  }

  float ones_[8];  // of the second matrix: a one for each column, or zero
  float sums_[4] = {};
};

}  // namespace eyrie::selective_scan
