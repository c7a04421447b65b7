// The CUDA bodies behind slstm.h; arguments are already validated.
#pragma once

#include "kernels/slstm/slstm.h"

namespace eyrie {

void SlstmForwardCuda(const SlstmForwardArgs& args);
int64_t SlstmForwardWorkspaceCuda(const Tensor& x);
void SlstmBackwardCuda(const SlstmBackwardArgs& args);
int64_t SlstmBackwardWorkspaceCuda(const Tensor& x);

}  // namespace eyrie
