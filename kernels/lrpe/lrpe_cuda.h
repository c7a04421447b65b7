// The CUDA bodies behind lrpe.h; arguments are already validated.
#pragma once

#include "kernels/lrpe/lrpe.h"

namespace eyrie {

void LrpeForwardCuda(const LrpeForwardArgs& args);
void LrpeBackwardCuda(const LrpeBackwardArgs& args);
int64_t LrpeBackwardWorkspaceCuda(const Tensor& x, const Tensor& theta);

}  // namespace eyrie
