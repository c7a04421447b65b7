#include "parallel/shard.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace eyrie {
namespace {

ParamSpec Spec(Shape shape, int shard_axis) {
  return {.name = "w", .shape = shape, .shard_axis = shard_axis};
}

void ExpectSlice(const Slice& slice, Shape offset, Shape extent) {
  EXPECT_EQ(slice.offset, offset);
  EXPECT_EQ(slice.extent, extent);
}

TEST(Shard, LocalSliceCutsTheShardAxisIntoEqualParts) {
  ExpectSlice(LocalSlice(Spec({8, 6}, 0), 4, 3), {6, 0}, {2, 6});
  ExpectSlice(LocalSlice(Spec({8, 6}, 1), 2, 1), {0, 3}, {8, 3});
  ExpectSlice(LocalSlice(Spec({8, 6}, -1), 4, 2), {0, 0}, {8, 6});
  ExpectSlice(LocalSlice(Spec({}, -1), 4, 2), {}, {});
}

TEST(Shard, UnevenPartsAreABug) { EXPECT_THROW(LocalSlice(Spec({8, 6}, 1), 4, 0), Error); }

TEST(Shard, IntersectIsWhatBothHold) {
  const auto common = Intersect({{0, 2}, {4, 4}}, {{2, 0}, {5, 3}});
  ASSERT_TRUE(common.has_value());
  ExpectSlice(*common, {2, 2}, {2, 1});
  // Boxes that touch have nothing in common.
  EXPECT_FALSE(Intersect({{0, 0}, {2, 4}}, {{2, 0}, {2, 4}}).has_value());
  EXPECT_FALSE(Intersect({{0, 0}, {4, 2}}, {{0, 3}, {4, 1}}).has_value());
  // A scalar is all of itself; an empty box is nothing.
  EXPECT_TRUE(Intersect({{}, {}}, {{}, {}}).has_value());
  EXPECT_FALSE(Intersect({{0}, {0}}, {{0}, {3}}).has_value());
}

// Cutting a tensor for one number of ranks, then reading it through cuts for another, gives every
// element its own place again.
TEST(Shard, PartsOfAnyCutMakeUpTheWhole) {
  const Shape shape{4, 6, 12};
  std::vector<int> whole(static_cast<size_t>(shape.size()));
  std::iota(whole.begin(), whole.end(), 1);
  const Slice all{{0, 0, 0}, shape};
  const auto cut = [&](const Slice& slice) {
    std::vector<int> part(static_cast<size_t>(slice.extent.size()));
    CopyPart(slice, all, whole.data(), slice, part.data(), sizeof(int));
    return part;
  };
  const struct { int axis, parts; } cuts[] = {{-1, 1}, {0, 2}, {0, 4}, {1, 3}, {2, 4}, {2, 6}};
  for (const auto& from : cuts) {
    for (const auto& to : cuts) {
      for (int target_rank = 0; target_rank < to.parts; ++target_rank) {
        const Slice target = LocalSlice(Spec(shape, to.axis), to.parts, target_rank);
        std::vector<int> result(static_cast<size_t>(target.extent.size()));
        for (int rank = 0; rank < from.parts; ++rank) {
          const Slice source = LocalSlice(Spec(shape, from.axis), from.parts, rank);
          const auto part = Intersect(source, target);
          if (!part) continue;
          CopyPart(*part, source, cut(source).data(), target, result.data(), sizeof(int));
        }
        EXPECT_EQ(result, cut(target)) << from.axis << "/" << from.parts << " to " << to.axis << "/"
                                       << to.parts << " rank " << target_rank;
      }
    }
  }
}

TEST(Shard, BoxesOfARangeFollowOneAnotherInMemory) {
  const Slice box{{5, 0, 7, 1}, {3, 4, 1, 5}};
  const Shape whole{8, 4, 9, 6};
  const int64_t size = box.extent.size();
  std::vector<int> memory(static_cast<size_t>(size));  // of the box
  std::iota(memory.begin(), memory.end(), 0);
  for (int64_t begin = 0; begin <= size; ++begin) {
    for (int64_t end = begin; end <= size; ++end) {
      const std::vector<Slice> parts = BoxesOf(box, begin, end);
      EXPECT_LE(parts.size(), 7u);
      int64_t next = begin;
      for (const Slice& part : parts) {
        EXPECT_TRUE(Intersect(part, box).has_value());
        std::vector<int> copy(static_cast<size_t>(part.extent.size()));
        CopyPart(part, box, memory.data(), part, copy.data(), sizeof(int));
        for (const int element : copy) ASSERT_EQ(element, next++) << begin << " to " << end;
      }
      ASSERT_EQ(next, end);
    }
  }
  // As few as there can be.
  ASSERT_EQ(BoxesOf(box, 0, size).size(), 1u);
  ExpectSlice(BoxesOf(box, 0, size)[0], box.offset, box.extent);
  const std::vector<Slice> three = BoxesOf({{2, 1}, {6, 4}}, 3, 17);
  ASSERT_EQ(three.size(), 3u);
  ExpectSlice(three[0], {2, 4}, {1, 1});
  ExpectSlice(three[1], {3, 1}, {3, 4});
  ExpectSlice(three[2], {6, 1}, {1, 1});
  EXPECT_EQ(BoxesOf({{}, {}}, 0, 1).size(), 1u);
  EXPECT_THROW(BoxesOf({{0}, {3}}, 2, 4), Error);
}

TEST(Shard, CopyPartTouchesNothingElse) {
  const std::vector<float> source = {1, 2, 3, 4, 5, 6};
  std::vector<float> target(12, -1);
  // The element at (1, 2) of a [2, 3] source that starts at (0, 0), into a [3, 4] box at (1, 1).
  CopyPart({{1, 2}, {1, 1}}, {{0, 0}, {2, 3}}, source.data(), {{1, 1}, {3, 4}}, target.data(),
           sizeof(float));
  std::vector<float> expected(12, -1);
  expected[1] = 6;
  EXPECT_EQ(target, expected);
  const double scalar = 2.5;
  double copy = 0;
  CopyPart({{}, {}}, {{}, {}}, &scalar, {{}, {}}, &copy, sizeof(double));
  EXPECT_EQ(copy, 2.5);
}

}  // namespace
}  // namespace eyrie
