// The tiling of the CUDA bodies of attention, on the CPU: tiles cover what queries see, chunks lie
// in different banks, and operands of the tensor cores come from where the lanes' maps say.
#include "kernels/attention/attention_tiles.h"

#include <array>
#include <map>
#include <set>

#include "tests/kernels/attention_problem.h"

namespace eyrie {
namespace attention_test {
namespace {

// One sequence, and the sight of any of its tiles of rows, as kernels find it.
struct Sequence {
  int tokens, heads, past, window;
  std::vector<int> positions;

  static Sequence Random(TestRandom& random) {
    Sequence s;
    s.tokens = static_cast<int>(random.Int(1, 90));
    s.heads = static_cast<int>(random.Int(1, 3) == 1 ? 16 : random.Int(1, 5));
    s.past = static_cast<int>(random.Int(0, 2) * random.Int(0, 70));
    s.window = static_cast<int>(random.Int(0, 2) * random.Int(0, 50));
    // Some positions are those of documents, some just any numbers.
    const bool any = random.Int(0, 3) == 0;
    const OwnedTensor documents = Documents(1, s.tokens, s.past, random.Int(1, 100), random);
    for (int t = 0; t < s.tokens; ++t) {
      s.positions.push_back(static_cast<int>(any ? random.Int(0, 99)
                                                 : static_cast<int64_t>(Get(documents.tensor, t))));
    }
    return s;
  }
  int rows() const { return tokens * heads; }
  int FirstKey(int row) const {
    const int t = row / heads;
    return FirstVisibleKey<int>(t, positions[static_cast<size_t>(t)], window, past);
  }
  // The definition in attention.h.
  bool Sees(int row, int key) const {
    const int t = row / heads, s = t - key;
    const int position = positions[static_cast<size_t>(t)];
    return s >= 0 && s <= position && (window == 0 || s <= window) && key >= -past;
  }
  Sight SightOf(int begin, int end) const {
    Sight sight{.first_min = tokens,
                .first_max = -past,
                .token_min = begin / heads,
                .token_max = (std::min(end, rows()) - 1) / heads};
    for (int row = begin; row < std::min(end, rows()); ++row) {
      sight.first_min = std::min(sight.first_min, FirstKey(row));
      sight.first_max = std::max(sight.first_max, FirstKey(row));
    }
    return sight;
  }
};

// Counts the pairs of a tile of rows and one of keys that a kernel adds up. Where it does not mask,
// every row that exists must see every key.
void Visit(const Sequence& s, const Sight& sight, int row_begin, int rows, int key_begin, int keys,
           std::map<std::pair<int, int>, int>& visits) {
  const bool masked = !sight.SeesAll(key_begin, key_begin + keys);
  for (int row = row_begin; row < std::min(row_begin + rows, s.rows()); ++row) {
    for (int key = key_begin; key < key_begin + keys; ++key) {
      const bool kept = !masked || (key >= s.FirstKey(row) && key <= row / s.heads);
      if (kept) ++visits[{row, key}];
    }
  }
}

void ExpectEveryVisiblePairOnce(const Sequence& s, std::map<std::pair<int, int>, int>& visits) {
  size_t visible = 0;
  for (int row = 0; row < s.rows(); ++row) {
    for (int key = -s.past - 3; key < s.tokens + 3; ++key) {
      if (!s.Sees(row, key)) continue;
      ++visible;
      const auto found = visits.find({row, key});
      ASSERT_TRUE(found != visits.end() && found->second == 1) << "row " << row << " key " << key;
    }
  }
  EXPECT_EQ(visits.size(), visible);
}

TEST(AttentionTiles, TilesOfKeysCoverWhatRowsSee) {
  TestRandom random;
  for (int trial = 0; trial < 60; ++trial) {
    const Sequence s = Sequence::Random(random);
    const int held = static_cast<int>(random.Int(1, 40)), streamed = 8;
    const int parts = static_cast<int>(random.Int(1, 7));
    std::map<std::pair<int, int>, int> visits;
    for (int row = 0; row < s.rows(); row += held) {
      const Sight sight = s.SightOf(row, row + held);
      for (int part = 0; part < parts; ++part) {
        const TileRange tiles = PartOf(sight.KeyTiles(streamed), part, parts);
        for (int tile = tiles.begin; tile < tiles.end; ++tile) {
          Visit(s, sight, row, held, sight.first_min + tile * streamed, streamed, visits);
        }
      }
    }
    ExpectEveryVisiblePairOnce(s, visits);
  }
}

TEST(AttentionTiles, NoTileHasKeysOfThePastAndOfTheChunk) {
  TestRandom random;
  for (int trial = 0; trial < 100; ++trial) {
    const int begin = static_cast<int>(random.Int(-60, 60));
    const SegmentTiles tiles{begin, static_cast<int>(random.Int(begin, 90)),
                             static_cast<int>(random.Int(1, 40))};
    int key = begin;
    for (int tile = 0; tile < tiles.count(); ++tile) {
      ASSERT_EQ(tiles.First(tile), key);
      key = tiles.End(tile);
      ASSERT_GT(key, tiles.First(tile));
      ASSERT_LE(key - tiles.First(tile), tiles.size);
      EXPECT_EQ(tiles.First(tile) < 0, key <= 0);
    }
    EXPECT_EQ(key, tiles.end);
  }
}

TEST(AttentionTiles, TilesOfRowsCoverWhatSeesKeys) {
  TestRandom random;
  for (int trial = 0; trial < 60; ++trial) {
    const Sequence s = Sequence::Random(random);
    const int held = static_cast<int>(random.Int(1, 40)), streamed = 8;
    const int parts = static_cast<int>(random.Int(1, 7));
    std::map<std::pair<int, int>, int> visits;
    for (int key = -s.past; key < s.tokens; key += held) {
      const int key_end = std::min(key + held, s.tokens);
      const TileRange all = RowTilesSeeing(key, key_end, s.tokens, s.heads, s.window, streamed);
      for (int part = 0; part < parts; ++part) {
        const TileRange tiles = PartOf(all, part, parts);
        for (int tile = tiles.begin; tile < tiles.end; ++tile) {
          ASSERT_LT(tile * streamed, s.rows());
          const Sight sight = s.SightOf(tile * streamed, (tile + 1) * streamed);
          if (sight.first_min >= key_end) continue;
          Visit(s, sight, tile * streamed, streamed, key, held, visits);
        }
      }
    }
    ExpectEveryVisiblePairOnce(s, visits);
  }
}

TEST(AttentionTiles, PlansFillAGpuAndNoMore) {
  const TileSizes tiles = TilesFor(true, 128).forward;
  const auto parts = [&](int64_t sequences, int64_t tokens, int64_t past, int64_t window) {
    return ForwardParts({sequences, tokens, 16, 128, past, window}, tiles);
  };
  EXPECT_EQ(parts(4, 4096, 0, 0), 1);
  EXPECT_EQ(parts(1, 1, 5000, 0), 39) << "two tiles of keys a part";
  EXPECT_EQ(parts(1, 1, 5000, 256), 2) << "a window's keys only";
  EXPECT_EQ(parts(64, 1, 5000, 0), 5);
  EXPECT_EQ(parts(1, 1, 0, 0), 1);
  const TileSizes backward = TilesFor(true, 128).backward;
  EXPECT_EQ(BackwardParts({4, 4096, 16, 128, 0, 0}, backward), 5);
  EXPECT_EQ(BackwardParts({1, 131072, 16, 128, 0, 0}, backward), 1);
  EXPECT_EQ(BackwardParts({1, 1, 3, 128, 0, 0}, backward), 1);
}

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

TEST(AttentionTiles, ChunksAreDistinctAndFreeOfBankConflicts) {
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

TEST(AttentionTiles, OperandsFromSwizzledTilesGiveProducts) {
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
}  // namespace attention_test
}  // namespace eyrie
