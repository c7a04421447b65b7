// CUDA bodies of the causal convolution: causal_conv1d_forward_cuda.cu,
// causal_conv1d_backward_cuda.cu.
#pragma once

#include "core/round.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/cuda_partition.h"

namespace eyrie {
namespace causal_conv1d {

inline constexpr int kLanes = 64;   // threads along the channels of a block
inline constexpr int kWidth = 4;    // channels of a thread, where rows are made of vectors
inline constexpr int kWalkers = 4;  // threads along time of a block, each with a span of its own
// Tokens of a thread. Rows around the seams of spans are read twice, so the longest span that
// leaves blocks enough.
inline constexpr int kShortestSpan = 32, kLongestSpan = 128;
inline int64_t TimeBlocks(int64_t time, int span) { return CeilDiv(time, kWalkers * span); }
inline int Span(int64_t batch, int64_t time, int64_t channels) {
  const int64_t sequences = batch * CeilDiv(channels, kLanes * kWidth);
  int span = kLongestSpan;
  while (span > kShortestSpan && sequences * TimeBlocks(time, span) < 3 * kPlannedMultiprocessors) {
    span /= 2;
  }
  return span;
}

}  // namespace causal_conv1d

void CausalConv1dForwardCuda(const CausalConv1dForwardArgs& args);
void CausalConv1dBackwardCuda(const CausalConv1dBackwardArgs& args);

}  // namespace eyrie
