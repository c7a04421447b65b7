// The CUDA bodies behind mlstm_gates.h; arguments are already validated.
#pragma once

#include "kernels/mlstm/mlstm_gates.h"

namespace eyrie {

void MlstmGatesForwardCuda(const MlstmGatesForwardArgs& args);
void MlstmGatesBackwardCuda(const MlstmGatesBackwardArgs& args);

}  // namespace eyrie
