// The CUDA bodies behind selective_scan.h; arguments are already validated.
#pragma once

#include "kernels/selective_scan/selective_scan.h"

namespace eyrie {

void SelectiveScanForwardCuda(const SelectiveScanForwardArgs& args);
void SelectiveScanBackwardCuda(const SelectiveScanBackwardArgs& args);
void SelectiveScanSummaryCuda(const SelectiveScanSummaryArgs& args);
void SelectiveScanGradSummaryCuda(const SelectiveScanGradSummaryArgs& args);
// Float32 elements of the workspaces, for x [B, T, E].
int64_t SelectiveScanForwardWorkspaceCuda(const Shape& x, int64_t states);
int64_t SelectiveScanBackwardWorkspaceCuda(const Shape& x, int64_t states);
int64_t SelectiveScanSummaryWorkspaceCuda(const Shape& x, int64_t states);

}  // namespace eyrie
