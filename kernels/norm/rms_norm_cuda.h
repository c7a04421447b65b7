// The CUDA bodies behind rms_norm.h; arguments are already validated.
#pragma once

#include "kernels/norm/rms_norm.h"

namespace eyrie {

// The widest rows that a block can hold in its registers.
inline constexpr int64_t kMaxNormWidthCuda = 16384;

void RmsNormForwardCuda(const RmsNormForwardArgs& args);
void RmsNormBackwardCuda(const RmsNormBackwardArgs& args);
int64_t RmsNormBackwardWorkspaceCuda(const Tensor& x);

}  // namespace eyrie
