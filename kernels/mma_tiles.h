// Where elements lie for the tensor cores' products of a warp (mma.cuh): in tiles of shared memory,
// and in the registers of its lanes. Everything here is constexpr, for tests on the CPU.
#pragma once

#include <cstdint>

namespace eyrie {

// Head widths are padded with zeros to one of 64, 128 and 256, in shared memory alone.
constexpr int PaddedWidth(int64_t width) { return width <= 64 ? 64 : width <= 128 ? 128 : 256; }

// A tile in shared memory is rows of kWidth bfloat16 in chunks of 16 bytes. Chunks of a row are
// exchanged so that eight successive rows have equal chunk numbers in different banks.
template <int kWidth>
constexpr uint32_t ChunkOffset(int row, int chunk) {
  static_assert(kWidth % 64 == 0);
  return static_cast<uint32_t>(row * kWidth * 2 + ((chunk ^ (row & 7)) << 4));
}
// From the offset of a chunk in the first 16 columns of a row to that of the chunk `step` times 16
// columns further right. Also for addresses in a tile that starts at a multiple of 128.
constexpr uint32_t StepRight(uint32_t offset, int step) {
  const uint32_t chunks = 2 * static_cast<uint32_t>(step);
  return (offset ^ ((chunks & 7) << 4)) + ((chunks & ~7u) << 4);
}

// The row and chunk that a lane names to ldmatrix.x4 for 16 rows of 16 columns.
struct LaneChunk {
  int row, chunk;
};
// Operand A [16 rows, 16 columns] of mma.m16n8k16; also, transposed on the way, two operands B
// [16, 8] side by side out of a tile whose rows are the product's inner index.
constexpr LaneChunk LaneOfA(int lane) { return {lane & 15, lane >> 4}; }
// Two operands B [16, 8] out of a tile whose columns are the inner index: 16 rows of the tile are
// the 16 columns of the product.
constexpr LaneChunk LaneOfB(int lane) { return {(lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1}; }
// Where accumulator `i` of a lane lies in the [16, 8] result of mma.m16n8k16.
constexpr int AccumulatorRow(int lane, int i) { return (lane >> 2) + 8 * (i >> 1); }
constexpr int AccumulatorColumn(int lane, int i) { return 2 * (lane & 3) + (i & 1); }

}  // namespace eyrie
