// The CUDA bodies behind selective_scan.h; arguments are already validated.
#pragma once

#include "kernels/selective_scan/selective_scan.h"

namespace eyrie {

void SelectiveScanForwardCuda(const SelectiveScanForwardArgs& args);
void SelectiveScanBackwardCuda(const SelectiveScanBackwardArgs& args);
void SelectiveScanSummaryCuda(const SelectiveScanSummaryArgs& args);
void SelectiveScanGradSummaryCuda(const SelectiveScanGradSummaryArgs& args);

}  // namespace eyrie
