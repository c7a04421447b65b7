// CUDA bodies of the RG-LRU: rg_lru_cuda.cu, rg_lru_step.cu and rg_lru_summary_cuda.cu.
#pragma once

#include "kernels/rg_lru/rg_lru.h"

namespace eyrie {

void RgLruForwardCuda(const RgLruForwardArgs& args);
// The same of one token, without a workspace.
void RgLruStepCuda(const RgLruForwardArgs& args);
void RgLruBackwardCuda(const RgLruBackwardArgs& args);
void RgLruSummaryCuda(const RgLruSummaryArgs& args);
void RgLruGradSummaryCuda(const RgLruGradSummaryArgs& args);

}  // namespace eyrie
