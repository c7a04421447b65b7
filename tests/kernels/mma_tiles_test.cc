// Where the tensor cores' operands lie, on the CPU: chunks in different banks, and operands where
// the lanes' maps say.
#include "kernels/mma_tiles.h"

#include <array>
#include <set>

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

template <int kWidth>
void CheckChunks() {
  constexpr int kChunks = kWidth / 8;
  std::set<uint32_t> offsets;
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const uint32_t offset = ChunkOffset<kWidth>(row, chunk);
      EXPECT_LE(offset, 64u * kWidth * 2 - 16);
      offsets.insert(offset);
      EXPECT_EQ(StepRight(ChunkOffset<kWidth>(row, chunk % 2), chunk / 2), offset);
    }
  }
  EXPECT_EQ(offsets.size(), 64u * kChunks);
  // ldmatrix reads 8 rows of 16 bytes at once: together they must touch all 32 banks.
  for (const auto& lane_map : {LaneOfA, LaneOfB}) {
    for (int group = 0; group < 32; group += 8) {
      std::set<uint32_t> banks;
      for (int lane = group; lane < group + 8; ++lane) {
        const LaneChunk at = lane_map(lane);
        banks.insert(ChunkOffset<kWidth>(at.row, at.chunk) / 16 % 8);
      }
      EXPECT_EQ(banks.size(), 8u);
    }
  }
}

TEST(MmaTiles, ChunksAreDistinctAndFreeOfBankConflicts) {
  CheckChunks<64>();
  CheckChunks<128>();
  CheckChunks<256>();
}

// A warp on the host, as PTX describes ldmatrix and mma.m16n8k16. A register holds two elements.
using Register = std::array<double, 2>;
template <int kCount>
using Warp = std::array<std::array<Register, kCount>, 32>;

// Tile of kWidth columns whose element at 2-byte offset i is tile[i].
template <class Offset>
Warp<4> LoadMatrices(const std::vector<double>& tile, const Offset& offset, bool transposed) {
  Warp<4> result;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int row, int column) {
      return tile[static_cast<size_t>(offset(8 * matrix + row)) / 2 + static_cast<size_t>(column)];
    };
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 2; ++i) {
        const int a = lane / 4, b = 2 * (lane % 4) + i;
        result[static_cast<size_t>(lane)][static_cast<size_t>(matrix)][static_cast<size_t>(i)] =
            transposed ? element(b, a) : element(a, b);
      }
    }
  }
  return result;
}

// c[16, 8] += a[16, 16] b[16, 8], each operand gathered from the registers where PTX puts it.
void Mma(std::array<std::array<double, 4>, 32>& c, const Warp<4>& a, const Warp<4>& b, size_t b0) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = AccumulatorRow(lane, i), column = AccumulatorColumn(lane, i);
      for (int k = 0; k < 16; ++k) {
        const auto from_a = static_cast<size_t>(row % 8 * 4 + k % 8 / 2);
        const auto from_b = static_cast<size_t>(column * 4 + k % 8 / 2);
        const auto register_a = static_cast<size_t>(row / 8 + 2 * (k / 8));
        const auto odd = static_cast<size_t>(k % 2);
        c[static_cast<size_t>(lane)][static_cast<size_t>(i)] +=
            a[from_a][register_a][odd] * b[from_b][b0 + static_cast<size_t>(k / 8)][odd];
      }
    }
  }
}

TEST(MmaTiles, OperandsFromSwizzledTilesGiveProducts) {
  TestRandom random;
  constexpr int kWidth = 128, kRows = 16;
  double a[kRows][kWidth], b[kRows][kWidth];
  std::vector<double> a_tile(kRows * kWidth), b_tile(kRows * kWidth);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kWidth; ++column) {
      const size_t at = ChunkOffset<kWidth>(row, column / 8) / 2 + static_cast<size_t>(column % 8);
      a_tile[at] = a[row][column] = random.Normal();
      b_tile[at] = b[row][column] = random.Normal();
    }
  }
  const auto at_step = [](LaneChunk (*map)(int), int step) {
    return [map, step](int lane) {
      return StepRight(ChunkOffset<kWidth>(map(lane).row, map(lane).chunk), step);
    };
  };
  // scores = a b^T, as MultiplyTransposed computes it: 16 x 16 in two results.
  std::array<std::array<double, 4>, 32> scores[2] = {};
  for (int step = 0; step < kWidth / 16; ++step) {
    const Warp<4> left = LoadMatrices(a_tile, at_step(LaneOfA, step), false);
    const Warp<4> right = LoadMatrices(b_tile, at_step(LaneOfB, step), false);
    for (size_t n = 0; n < 2; ++n) Mma(scores[n], left, right, 2 * n);
  }
  double expected[kRows][kRows] = {};
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kRows; ++column) {
      for (int k = 0; k < kWidth; ++k) expected[row][column] += a[row][k] * b[column][k];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int n = 0; n < 2; ++n) {
        EXPECT_NEAR(scores[n][static_cast<size_t>(lane)][static_cast<size_t>(i)],
                    expected[AccumulatorRow(lane, i)][8 * n + AccumulatorColumn(lane, i)], 1e-9);
      }
    }
  }
  // scores b, as AddProduct computes it: the accumulators are operand A as they lie.
  Warp<4> left;
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t i = 0; i < 4; ++i) {
      const auto& accumulators = scores[i / 2][lane];
      left[lane][i] = {accumulators[2 * (i % 2)], accumulators[2 * (i % 2) + 1]};
    }
  }
  for (int step = 0; step < kWidth / 16; ++step) {
    const Warp<4> right = LoadMatrices(b_tile, at_step(LaneOfA, step), true);
    for (size_t n = 0; n < 2; ++n) {
      std::array<std::array<double, 4>, 32> sums = {};
      Mma(sums, left, right, 2 * n);
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const int row = AccumulatorRow(lane, i);
          const int column = 16 * step + 8 * static_cast<int>(n) + AccumulatorColumn(lane, i);
          double product = 0;
          for (int k = 0; k < kRows; ++k) product += expected[row][k] * b[k][column];
          EXPECT_NEAR(sums[static_cast<size_t>(lane)][static_cast<size_t>(i)], product, 1e-8);
        }
      }
    }
  }
}

}  // namespace
}  // namespace eyrie
