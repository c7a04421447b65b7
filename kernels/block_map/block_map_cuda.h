// The CUDA bodies behind block_map.h; arguments are already validated.
#pragma once

#include "kernels/block_map/block_map.h"
#include "kernels/cuda_partition.h"

namespace eyrie {

// The forward pass adds up gates over at least so many channels at a time, except for the last.
inline constexpr int64_t kBlockMapGateColumns = 128;

// Tiles of the backward pass, and the rows that one of its blocks takes: so many that the blocks,
// two on a multiprocessor, are there all at once.
inline constexpr int64_t kBlockMapTileRows = 32, kBlockMapTileColumns = 128;
inline int64_t BlockMapBackwardChunk(int64_t rows, int64_t width) {
  const int64_t parts = CeilDiv(width, kBlockMapTileColumns);
  const int64_t chunks = std::max<int64_t>(1, 2 * kPlannedMultiprocessors / parts);
  return RoundUp(CeilDiv(rows, chunks), kBlockMapTileRows);
}

// Sums over rows that the backward pass makes: each map's products dy x [C / 4, 4, 4], and, for the
// gates, dgates^T x [G, C]. Each chunk of rows has its own, and one more line is their total.
inline int64_t BlockMapSums(int64_t width, int64_t maps, int64_t gates) {
  return width * (maps * kBlockMapWidth + gates);
}

void BlockMapForwardCuda(const BlockMapForwardArgs& args);
void BlockMapBackwardCuda(const BlockMapBackwardArgs& args);

}  // namespace eyrie
