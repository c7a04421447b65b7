// The CUDA bodies behind layer_norm.h; arguments are already validated.
#pragma once

#include "kernels/norm/layer_norm.h"

namespace eyrie {

void LayerNormForwardCuda(const LayerNormForwardArgs& args);
void LayerNormBackwardCuda(const LayerNormBackwardArgs& args);
int64_t LayerNormBackwardWorkspaceCuda(const Tensor& x);

}  // namespace eyrie
