// The CUDA bodies behind gated_layer_norm.h; arguments are already validated.
#pragma once

#include "kernels/gated_norm/gated_layer_norm.h"

namespace eyrie {

// The widest groups that a block holds in its registers, beside their sums.
inline constexpr int64_t kMaxGatedLayerNormWidthCuda = 2048;

void GatedLayerNormForwardCuda(const GatedLayerNormForwardArgs& args);
void GatedLayerNormBackwardCuda(const GatedLayerNormBackwardArgs& args);

}  // namespace eyrie
