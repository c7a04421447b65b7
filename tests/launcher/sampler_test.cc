#include "launcher/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

class SamplerTest : public TempFolderTest {
 protected:
  // A dataset of the tokens 0, 1, 2, ...
  IndexedDataset Counting(int32_t tokens) {
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    std::iota(ids.begin(), ids.end(), 0);
    IndexedDatasetWriter writer(Path("x"), tokens);
    writer.AddDocument(ids);
    writer.Finish();
    return IndexedDataset(Path("x"));
  }
};

std::vector<int64_t> Order(const Sampler& sampler, int64_t epoch) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < sampler.windows(); ++i) {
    order.push_back(sampler.WindowOf(epoch * sampler.windows() + i));
  }
  return order;
}

TEST_F(SamplerTest, EveryEpochIsAPermutation) {
  for (const int32_t windows : {1, 2, 3, 7, 64, 1000}) {
    const IndexedDataset dataset = Counting(windows * 4 + 1);
    const Sampler sampler(dataset, 4, 17);
    ASSERT_EQ(sampler.windows(), windows);
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      auto order = Order(sampler, epoch);
      std::sort(order.begin(), order.end());
      for (int64_t i = 0; i < windows; ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i);
    }
  }
}

TEST_F(SamplerTest, EpochsAndSeedsDiffer) {
  const IndexedDataset dataset = Counting(257);
  const Sampler one(dataset, 4, 1);
  const Sampler two(dataset, 4, 2);
  EXPECT_NE(Order(one, 0), Order(one, 1));
  EXPECT_NE(Order(one, 0), Order(two, 0));
  EXPECT_EQ(Order(one, 5), Order(Sampler(dataset, 4, 1), 5));
}

// A change here changes the data order of every run that resumes: it must be deliberate.
TEST_F(SamplerTest, OrderIsPinned) {
  const IndexedDataset dataset = Counting(4001);
  const Sampler sampler(dataset, 4, 42);
  std::vector<int64_t> first;
  for (int64_t i = 0; i < 6; ++i) first.push_back(sampler.WindowOf(i));
  EXPECT_EQ(first, (std::vector<int64_t>{425, 813, 548, 621, 293, 392}));
  EXPECT_EQ(sampler.WindowOf(1000), 996);
  EXPECT_EQ(sampler.WindowOf(123456789), 643);
  const Random random(7, "a");
  EXPECT_EQ(Permute(random, int64_t{1} << 62, 0), 2602199078046013266);
  EXPECT_EQ(Permute(random, 1'000'000'007, 1'000'000'006), 600089704);
}

TEST_F(SamplerTest, ReadsWindowsThatShareOneToken) {
  const IndexedDataset dataset = Counting(20);  // windows at 0, 6, 12; 19 is not used
  const Sampler shuffled(dataset, 6, 3);
  const Sampler in_order(dataset, 6, 3, /*shuffle=*/false);
  ASSERT_EQ(in_order.windows(), 3);
  for (int64_t i = 0; i < 9; ++i) {
    EXPECT_EQ(in_order.WindowOf(i), i % 3);
    for (const Sampler* sampler : {&shuffled, &in_order}) {
      std::vector<int32_t> tokens(7);
      sampler->Read(i, tokens.data());
      EXPECT_EQ(tokens[0], sampler->WindowOf(i) * 6);
      EXPECT_EQ(tokens[0], sampler->FirstToken(i));
      for (int32_t t = 0; t < 7; ++t) EXPECT_EQ(tokens[static_cast<size_t>(t)], tokens[0] + t);
    }
  }
}

TEST_F(SamplerTest, RefusesTooShortAFile) {
  const IndexedDataset dataset = Counting(20);
  EXPECT_EQ(Sampler(dataset, 19, 0).windows(), 1);
  EXPECT_EQ(BadInput([&] { Sampler(dataset, 20, 0); }),
            Path("x.bin") + ": 20 tokens, but one sequence takes train.sequence_length + 1 = 21");
}

// Chi-square over `cells` equally likely outcomes.
double ChiSquare(const std::map<std::vector<int64_t>, int>& counts, int cells, int draws) {
  const double expected = static_cast<double>(draws) / cells;
  double sum = (cells - static_cast<int>(counts.size())) * expected;  // those never seen
  for (const auto& [outcome, count] : counts) {
    sum += (count - expected) * (count - expected) / expected;
  }
  return sum;
}

TEST_F(SamplerTest, PermutationsAreFair) {
  const int draws = 6000;
  std::map<std::vector<int64_t>, int> whole;
  std::map<std::vector<int64_t>, int> first;
  std::map<std::vector<int64_t>, int> step;
  for (int i = 0; i < draws; ++i) {
    const Random random(static_cast<uint64_t>(i), "fairness");
    ++whole[{Permute(random, 3, 0), Permute(random, 3, 1), Permute(random, 3, 2)}];
    ++first[{Permute(random, 40, 0)}];
    // The distance between neighbours is any but 0.
    ++step[{(Permute(random, 41, 8) - Permute(random, 41, 7) + 41) % 41}];
  }
  // The bounds are passed by chance with probability 0.999.
  EXPECT_LT(ChiSquare(whole, 6, draws), 20.5);
  EXPECT_LT(ChiSquare(first, 40, draws), 72.1);
  EXPECT_LT(ChiSquare(step, 40, draws), 72.1);
}

}  // namespace
}  // namespace eyrie
