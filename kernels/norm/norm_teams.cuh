// How norms of groups of channels are cut among threads: a team of threads, a part of a warp or a
// whole block, holds a group in registers, each thread kVectors vectors of kWidth elements that lie
// a team's width apart.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/norm/group_statistics.h"

namespace eyrie {

inline constexpr int kLaneThreads = 256;  // of a block that is many teams

// Part of a warp.
template <int kLanes>
struct LaneTeam {
  static constexpr int kMaxThreads = kLaneThreads, kMinBlocks = 2;
  static __device__ int Size() { return kLanes; }
  static __device__ int Index() { return static_cast<int>(threadIdx.x) % kLanes; }
  static __device__ int64_t Number() {
    return int64_t{blockIdx.x} * (kLaneThreads / kLanes) + threadIdx.x / kLanes;
  }
  // Over the team. All teams of a warp come here together.
  static __device__ float Sum(float x, float*) {
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
  }
};
// A whole block of at most kMost threads, kBlocks of which should fit a multiprocessor.
template <int kMost, int kBlocks>
struct BlockTeam {
  static constexpr int kMaxThreads = kMost, kMinBlocks = kBlocks;
  static __device__ int Size() { return static_cast<int>(blockDim.x); }
  static __device__ int Index() { return static_cast<int>(threadIdx.x); }
  static __device__ int64_t Number() { return blockIdx.x; }
  static __device__ float Sum(float x, float* shared) { return BlockSum(x, shared); }
};

// The statistics of the group of `width` channels that a team holds, whose threads have their
// shares of it in `values`. `end` is `width` too, or 0 for a team that has no group.
template <class Team, class T, int kWidth, int kVectors>
__device__ __forceinline__ GroupStatistics<float> StatisticsOf(
    const Vector<T, kWidth> (&values)[kVectors], int end, int width, float epsilon) {
  __shared__ float shared[2][32];
  const int first = Team::Index() * kWidth, step = Team::Size() * kWidth;
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (first + k * step >= end) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += values[k][i];
  }
  const float mean = Team::Sum(sum, shared[0]) / static_cast<float>(width);
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (first + k * step >= end) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += (values[k][i] - mean) * (values[k][i] - mean);
  }
  const float variance = Team::Sum(squares, shared[1]) / static_cast<float>(width);
  return {mean, rsqrtf(variance + epsilon)};
}

// How a launch is cut into blocks.
struct Blocks {
  unsigned threads, teams;  // of a block
};

// Calls body<team, vectors' width, vectors of a thread>(blocks) for groups of `width` channels,
// which are at most kMost.
template <class T, int64_t kMost, class Body>
void PickTeam(int64_t width, bool fits_vectors, const Body& body) {
  const auto lanes = [&]<int kLanes, int kWidth, int kVectors>() {
    const Blocks blocks{kLaneThreads, kLaneThreads / kLanes};
    body.template operator()<LaneTeam<kLanes>, kWidth, kVectors>(blocks);
  };
  const auto block = [&]<int kThreads, int kMinBlocks, int kWidth, int kVectors>() {
    const Blocks blocks{32 * Pieces(width, 32 * kWidth * kVectors), 1};
    body.template operator()<BlockTeam<kThreads, kMinBlocks>, kWidth, kVectors>(blocks);
  };
  constexpr int kWidth = kVectorWidth<T>;
  if (!fits_vectors) {
    width <= 128 ? lanes.template operator()<32, 1, 4>()
                 : block.template operator()<kMost / 16, 1, 1, 16>();
  } else if (width <= 8 * kWidth) {
    lanes.template operator()<8, kWidth, 1>();
  } else if (width <= 16 * kWidth) {
    lanes.template operator()<16, kWidth, 1>();
  } else if (width <= 32 * kWidth) {
    lanes.template operator()<32, kWidth, 1>();
  } else if (width <= 64 * kWidth) {
    lanes.template operator()<32, kWidth, 2>();
  } else if (width <= 256 * kWidth) {
    block.template operator()<256, 4, kWidth, 1>();
  } else if (width <= 512 * kWidth) {
    block.template operator()<256, 2, kWidth, 2>();
  } else if constexpr (kMost > 512 * kWidth) {
    block.template operator()<kMost / (4 * kWidth), 1, kWidth, 4>();
  }
}

}  // namespace eyrie
