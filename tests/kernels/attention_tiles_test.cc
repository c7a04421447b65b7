// The tiling of the CUDA bodies of attention, on the CPU: tiles cover what queries see.
#include "kernels/attention/attention_tiles.h"

#include <map>

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

}  // namespace
}  // namespace attention_test
}  // namespace eyrie
