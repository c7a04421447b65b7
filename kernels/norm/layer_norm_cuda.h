// The CUDA bodies behind layer_norm.h; arguments are already validated.
#pragma once

#include "kernels/cuda_partition.h"
#include "kernels/norm/layer_norm.h"

namespace eyrie {

// Stripes of the backward pass: about 1024 threads for each multiprocessor, of 16 elements each,
// and not so many that adding up their shares takes long.
inline int LayerNormStripes(const Tensor& x) {
  const int64_t row_width = x.dim(-2) * x.dim(-1), rows = x.size() / row_width;
  const int64_t each = std::clamp<int64_t>(1024 * 16 / row_width, 1, 32);
  return static_cast<int>(std::min(rows, each * kPlannedMultiprocessors));
}

void LayerNormForwardCuda(const LayerNormForwardArgs& args);
void LayerNormBackwardCuda(const LayerNormBackwardArgs& args);

}  // namespace eyrie
