// The CUDA bodies behind block_map.h; arguments are already validated.
#pragma once

#include "kernels/block_map/block_map.h"
#include "kernels/cuda_partition.h"

namespace eyrie {

// The forward pass adds up gates over at least so many channels at a time, except for the last.
inline constexpr int64_t kBlockMapGateColumns = 128;

// Sums over rows that the backward pass makes: each map's products dy x [C / 4, 4, 4], and, for the
// gates, dgates^T x [G, C]. Each chunk of rows has its own, and one more line is their total.
inline int64_t BlockMapSums(int64_t width, int64_t maps, int64_t gates) {
  return width * (maps * kBlockMapWidth + gates);
}

void BlockMapForwardCuda(const BlockMapForwardArgs& args);
void BlockMapBackwardCuda(const BlockMapBackwardArgs& args);

}  // namespace eyrie
