// The CUDA bodies behind block_map.h; arguments are already validated.
#pragma once

#include "kernels/block_map/block_map.h"
#include "kernels/cuda_partition.h"

namespace eyrie {

void BlockMapForwardCuda(const BlockMapForwardArgs& args);
void BlockMapBackwardCuda(const BlockMapBackwardArgs& args);

}  // namespace eyrie
