// CUDA bodies of the causal convolution: causal_conv1d_cuda.cu.
#pragma once

#include "kernels/causal_conv1d/causal_conv1d.h"

namespace eyrie {

void CausalConv1dForwardCuda(const CausalConv1dForwardArgs& args);
void CausalConv1dBackwardCuda(const CausalConv1dBackwardArgs& args);
// Float32 elements of the workspace, for x [B, T, C] and K taps.
int64_t CausalConv1dBackwardWorkspaceCuda(const Shape& x, int64_t taps);

}  // namespace eyrie
