// The CUDA bodies behind gated_norm.h; arguments are already validated.
#pragma once

#include "kernels/gated_norm/gated_norm.h"

namespace eyrie {

void RowProductsCuda(const RowProductsArgs& args);
void GatedNormForwardCuda(const GatedNormForwardArgs& args);
void GatedNormBackwardCuda(const GatedNormBackwardArgs& args);

}  // namespace eyrie
