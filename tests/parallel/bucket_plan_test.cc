#include "parallel/bucket_plan.h"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/shard.h"

namespace eyrie {
namespace {

ParamTable MakeTable() {
  ParamTable table;
  const auto add = [&](const char* name, Shape shape, int axis, bool full_precision = false) {
    table.Add({.name = name,
               .shape = shape,
               .shard_axis = axis,
               .full_precision = full_precision,
               .init = InitConstant(0.0)});
  };
  add("table", {40, 12}, 0);
  add("rates", {8, 13}, 0, /*full_precision=*/true);
  add("scalar", {}, -1);
  add("rows", {6, 52}, 1);
  add("norm", {7}, -1);
  add("gain", {5}, -1, /*full_precision=*/true);
  add("blocks", {4, 9, 5}, 0);
  return table;
}

const MeshShape kMeshes[] = {{1, 1, 1}, {4, 1, 1}, {3, 1, 2}, {2, 2, 2}, {7, 1, 4}};
constexpr int64_t kBucketElements[] = {1, 64, 100, 300, int64_t{1} << 22};

template <class Body>
void ForEachPlan(const Body& body) {
  const ParamTable table = MakeTable();
  for (const MeshShape& mesh : kMeshes) {
    for (const int64_t elements : kBucketElements) {
      for (const bool zero : {false, true}) {
        for (const bool mixed : {false, true}) {
          SCOPED_TRACE(testing::Message()
                       << mesh.data << "x" << mesh.sequence << "x" << mesh.tensor << " buckets of "
                       << elements << " zero " << zero << " mixed " << mixed);
          const BucketOptions options{.zero = zero, .bucket_elements = elements};
          body(table, mesh, BucketPlan(table, mesh, options, mixed));
        }
      }
    }
  }
}

TEST(BucketPlan, BucketsAndSharesTileTheBuffersAtCacheLines) {
  ForEachPlan([](const ParamTable&, MeshShape, const BucketPlan& plan) {
    int64_t end = 0, owned = 0;
    for (int index = 0; index < plan.buckets(); ++index) {
      EXPECT_EQ(plan.bucket(index).begin, end);
      EXPECT_EQ(plan.owned_offset(index), owned);
      for (int owner = 0; owner < plan.owners(); ++owner) {
        const BucketPlan::Range share = plan.share(index, owner);
        EXPECT_EQ(share.begin, end);
        EXPECT_EQ(share.begin % 16, 0);
        EXPECT_GT(share.size(), 0);
        EXPECT_EQ(share.size() * plan.owners(), plan.bucket(index).size());
        end = share.end;
      }
      owned += plan.share(index, 0).size();
      EXPECT_EQ(plan.bucket(index).end, end);
    }
    EXPECT_EQ(end, plan.elements());
    EXPECT_EQ(owned, plan.owned_elements());
  });
}

// Every element of every parameter has one owner, who keeps it where its share of the bucket says.
TEST(BucketPlan, PartsCoverEveryParameterOnce) {
  ForEachPlan([](const ParamTable& table, MeshShape mesh, const BucketPlan& plan) {
    std::vector<std::vector<int>> seen;
    for (const ParamSpec& spec : table.specs()) {
      seen.emplace_back(LocalSlice(spec, mesh.tensor, 0).extent.size());
    }
    for (int owner = 0; owner < plan.owners(); ++owner) {
      int64_t last = -1;
      for (const BucketPlan::Part& part : plan.Parts(owner)) {
        EXPECT_GT(part.range.size(), 0);
        EXPECT_GT(part.flat, last) << "not in order";
        last = part.flat;
        EXPECT_EQ(part.flat, plan.offset(part.param) + part.range.begin);
        const BucketPlan::Range share = plan.share(part.bucket, owner);
        EXPECT_GE(part.flat, share.begin);
        EXPECT_LE(part.flat + part.range.size(), share.end);
        EXPECT_EQ(part.owned - plan.owned_offset(part.bucket), part.flat - share.begin);
        for (int64_t i = part.range.begin; i < part.range.end; ++i) {
          ++seen[static_cast<size_t>(part.param)].at(static_cast<size_t>(i));
        }
      }
    }
    for (const auto& counts : seen) EXPECT_EQ(counts, std::vector<int>(counts.size(), 1));
  });
}

// Parameters lie in table order, but those of full precision before all others where their values
// have another type, and never with others in one bucket.
TEST(BucketPlan, FullPrecisionHasBucketsOfItsOwn) {
  ForEachPlan([](const ParamTable& table, MeshShape, const BucketPlan& plan) {
    const bool mixed = plan.full_elements() > 0;
    std::vector<ParamId> expected{0, 1, 2, 3, 4, 5, 6};
    if (mixed) expected = {1, 5, 0, 2, 3, 4, 6};
    EXPECT_EQ(plan.order(), expected);
    for (size_t i = 1; i < expected.size(); ++i) {
      EXPECT_LT(plan.offset(expected[i - 1]), plan.offset(expected[i]));
    }
    for (int owner = 0; mixed && owner < plan.owners(); ++owner) {
      for (const BucketPlan::Part& part : plan.Parts(owner)) {
        const BucketPlan::Range bucket = plan.bucket(part.bucket);
        const bool full = table.spec(part.param).full_precision;
        EXPECT_EQ(full, bucket.end <= plan.full_elements());
        EXPECT_EQ(full, bucket.begin < plan.full_elements());
      }
    }
  });
}

// Buckets become complete from the end, each with the first call that completes all it holds; those
// of full precision, with the last call.
TEST(BucketPlan, BucketsAreCompleteWhenTheirParametersAre) {
  ForEachPlan([](const ParamTable& table, MeshShape, const BucketPlan& plan) {
    const auto params = static_cast<ParamId>(table.specs().size());
    EXPECT_EQ(plan.FirstBucketFrom(params), plan.buckets());
    EXPECT_EQ(plan.FirstBucketFrom(0), 0);
    for (ParamId first = 0; first < params; ++first) {
      std::vector<bool> complete(static_cast<size_t>(plan.buckets()), true);
      for (int owner = 0; owner < plan.owners(); ++owner) {
        for (const BucketPlan::Part& part : plan.Parts(owner)) {
          const bool full = part.flat < plan.full_elements();
          if (part.param < first || (full && first > 0)) {
            complete[static_cast<size_t>(part.bucket)] = false;
          }
        }
      }
      for (int index = 0; index < plan.buckets(); ++index) {
        EXPECT_EQ(index >= plan.FirstBucketFrom(first), complete[static_cast<size_t>(index)])
            << "bucket " << index << " from parameter " << first;
      }
    }
  });
}

TEST(BucketPlan, ZeroDividesWhatIsOwned) {
  const ParamTable table = MakeTable();
  const BucketPlan plain(table, {4, 1, 1}, {.zero = false, .bucket_elements = 128});
  const BucketPlan zero(table, {4, 1, 1}, {.zero = true, .bucket_elements = 128});
  EXPECT_FALSE(plain.sharded());
  EXPECT_EQ(plain.owned_elements(), plain.elements());
  EXPECT_TRUE(zero.sharded());
  EXPECT_EQ(zero.owned_elements(), zero.elements() / 4);
  EXPECT_LT(zero.elements(), plain.elements() + 4 * 16);
  EXPECT_EQ(zero.bucket(0).size(), 128);
}

}  // namespace
}  // namespace eyrie
