// The CUDA bodies behind mlstm.h; arguments are already validated.
#pragma once

#include "kernels/mlstm/mlstm.h"

namespace eyrie {

void MlstmForwardCuda(const MlstmForwardArgs& args);
void MlstmBackwardCuda(const MlstmBackwardArgs& args);
void MlstmSummaryCuda(const MlstmSummaryArgs& args);
void MlstmGradSummaryCuda(const MlstmGradSummaryArgs& args);
// Float32 elements of the workspace of each of them.
int64_t MlstmCudaWorkspace(const Tensor& q, const Tensor& v, const MlstmOptions& options);

}  // namespace eyrie
