// The CUDA bodies behind adamw.h; arguments are already validated.
#pragma once

#include "core/round.h"
#include "kernels/adamw/adamw.h"
#include "kernels/cuda_partition.h"

namespace eyrie {

// Of the sum of squares of `count` elements: blocks, each of which leaves a float64.
inline constexpr int kSumThreads = 256, kMaxSumBlocks = 1024, kSumUnroll = 8;
inline int64_t SumBlocks(int64_t count) {
  return std::min<int64_t>(kMaxSumBlocks, CeilDiv(count, 4 * kSumThreads * kSumUnroll));
}

void AdamWCuda(const AdamWArgs& args);
void SumOfSquaresCuda(const Tensor& values, const Tensor& sum, const Tensor& workspace);

}  // namespace eyrie
