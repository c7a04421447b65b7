// The CUDA bodies behind mlstm.h; arguments are already validated.
#pragma once

#include "kernels/mlstm/mlstm.h"

namespace eyrie {

void MlstmForwardCuda(const MlstmForwardArgs& args);
void MlstmBackwardCuda(const MlstmBackwardArgs& args);
void MlstmSummaryCuda(const MlstmSummaryArgs& args);
void MlstmGradSummaryCuda(const MlstmGradSummaryArgs& args);

}  // namespace eyrie
