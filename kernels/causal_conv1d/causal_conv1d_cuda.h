// CUDA bodies of the causal convolution: causal_conv1d_cuda.cu.
#pragma once

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/cuda_partition.h"

namespace eyrie {
namespace causal_conv1d {

inline constexpr int kWalkers = 4;  // threads along time of a block, each with a span of its own
inline constexpr int kForwardSpan = 32, kBackwardSpan = 64;  // tokens of a thread, whole groups
// Blocks along time.
inline int64_t TimeBlocks(int64_t time, int span) { return CeilDiv(time, kWalkers * span); }

}  // namespace causal_conv1d

void CausalConv1dForwardCuda(const CausalConv1dForwardArgs& args);
void CausalConv1dBackwardCuda(const CausalConv1dBackwardArgs& args);

}  // namespace eyrie
