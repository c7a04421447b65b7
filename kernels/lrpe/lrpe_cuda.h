// The CUDA bodies behind lrpe.h; arguments are already validated.
#pragma once

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "kernels/lrpe/lrpe.h"

namespace eyrie {

// Rows of blocks of the backward pass, each of which leaves a row of sums; about 16 tokens each.
inline int64_t LrpeTokenBlocks(const Tensor& x) {
  const int64_t tokens = x.dim(0) * x.dim(1);
  return CeilDiv(tokens, std::max<int64_t>(16, tokens / 1024));
}

void LrpeForwardCuda(const LrpeForwardArgs& args);
void LrpeBackwardCuda(const LrpeBackwardArgs& args);

}  // namespace eyrie
