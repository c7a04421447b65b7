// The running softmax of two rows of scores, in the accumulators of a product [16, columns].
#pragma once

#include "kernels/mma.cuh"

namespace eyrie {

// Of a lane's rows AccumulatorRow(lane, 2 h), shared with the other lanes of its quad.
struct RunningSoftmax {
  float largest[2] = {-INFINITY, -INFINITY};  // score so far, not scaled
  float sum[2] = {};                          // of this lane's columns

  // scores -> probabilities relative to the largest score so far; shrink: what earlier ones are to
  // be multiplied with.
  template <int kGroups>
  __device__ __forceinline__ void Update(float scale_log2, float (&scores)[kGroups][4],
                                         float (&shrink)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float now = largest[h];
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        now = fmaxf(now, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
      }
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      // A row that has seen nothing yet must not subtract infinities.
      const float base = now == -INFINITY ? 0.0f : now * scale_log2;
      shrink[h] = Exp2(largest[h] * scale_log2 - base);
      largest[h] = now;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          scores[n][i] = Exp2(fmaf(scores[n][i], scale_log2, -base));
          added += scores[n][i];
        }
      }
      sum[h] = sum[h] * shrink[h] + added;
    }
  }
  // Of row h: the softmax's denominator, and its logarithm for scores times `scale`. A row that
  // has seen nothing, which happens only in a part of several, has 0 and minus infinity.
  struct Total {
    float sum, lse;
  };
  __device__ __forceinline__ Total Finish(int h, float scale) const {
    const float total = QuadSum(sum[h]);
    return {total, total > 0.0f ? largest[h] * scale + __logf(total) : -INFINITY};
  }
};

// o *= shrink, by rows, unless that is 1 in all lanes.
template <int kGroups>
__device__ __forceinline__ void ShrinkRows(const float (&shrink)[2], float (&o)[kGroups][4]) {
  if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] *= shrink[i / 2];
  }
}

}  // namespace eyrie
