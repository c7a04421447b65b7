// The synthetic tasks hold what they promise, for any size, and refuse sizes that do not fit.
#include "launcher/synthetic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "launcher/indexed_dataset.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

struct Sequence {
  std::vector<int32_t> tokens, labels;

  int64_t Labels() const {
    return std::count_if(labels.begin(), labels.end(), [](int32_t label) { return label >= 0; });
  }
};

class SyntheticTest : public TempFolderTest {
 protected:
  // Writes and reads back: each sequence is a document of the task's length, as are its labels.
  std::vector<Sequence> Make(const SyntheticTask& task, int64_t sequences, uint64_t seed) {
    const int64_t labels = WriteSynthetic(task, Path("data"), sequences, seed);
    const IndexedDataset tokens_file(Path("data")), labels_file(Path("data.labels"));
    tokens_file.CheckTokens(task.vocab_size - 1, 0, tokens_file.total_tokens());
    EXPECT_EQ(tokens_file.documents(), sequences);
    std::vector<Sequence> made(static_cast<size_t>(sequences));
    int64_t counted = 0;
    for (int64_t i = 0; i < sequences; ++i) {
      Sequence& sequence = made[static_cast<size_t>(i)];
      for (const auto& [file, to] :
           {std::pair{&tokens_file, &sequence.tokens}, std::pair{&labels_file, &sequence.labels}}) {
        EXPECT_EQ(file->document_start(i), i * task.length);
        to->resize(static_cast<size_t>(task.length));
        file->Read(i * task.length, task.length, to->data());
      }
      for (int32_t& label : sequence.labels) EXPECT_LT(--label, task.vocab_size);
      counted += sequence.Labels();
    }
    EXPECT_EQ(labels_file.total_tokens(), tokens_file.total_tokens());
    EXPECT_EQ(labels, counted);
    return made;
  }
  static bool Equal(const Sequence& a, const Sequence& b) {
    return a.tokens == b.tokens && a.labels == b.labels;
  }

  TestRandom random_;
};

TEST_F(SyntheticTest, SelectiveCopyingAsksForTheTokensInOrder) {
  std::vector<int> places(20, 0);
  const auto check = [&](int64_t length, int64_t copied, int64_t vocab, int64_t sequences) {
    for (const Sequence& made :
         Make(SelectiveCopying(length, copied, vocab), sequences, random_.seed())) {
      std::vector<int32_t> data;
      for (int64_t t = 0; t < length - copied; ++t) {
        const int32_t token = made.tokens[static_cast<size_t>(t)];
        EXPECT_NE(token, 1);
        EXPECT_EQ(made.labels[static_cast<size_t>(t)], -1);
        if (token == 0) continue;
        data.push_back(token);
        if (length == 24) ++places[static_cast<size_t>(t)];
      }
      ASSERT_EQ(static_cast<int64_t>(data.size()), copied);
      for (int64_t i = 0; i < copied; ++i) {
        const auto marker = static_cast<size_t>(length - copied + i);
        EXPECT_EQ(made.tokens[marker], 1);
        EXPECT_EQ(made.labels[marker], data[static_cast<size_t>(i)]);
      }
    }
  };
  check(2, 1, 4, 5);
  check(32, 16, 16, 5);
  check(random_.Int(40, 200), random_.Int(1, 20), random_.Int(4, 300), 20);
  // Every place is as likely as another: 4 of 20, within five standard deviations.
  check(24, 4, 8, 4000);
  for (const int count : places) EXPECT_NEAR(count, 800, 5 * std::sqrt(4000 * 0.2 * 0.8));
}

TEST_F(SyntheticTest, InductionHeadsAskForWhatFollowedTheSpecialToken) {
  for (int trial = 0; trial < 10; ++trial) {
    const int64_t length = trial == 0 ? 3 : random_.Int(3, 300), vocab = random_.Int(3, 40);
    for (const Sequence& made : Make(InductionHeads(length, vocab), 20, random_.seed())) {
      EXPECT_EQ(made.tokens.back(), 0);
      EXPECT_EQ(std::count(made.tokens.begin(), made.tokens.end(), 0), 2);
      EXPECT_EQ(made.Labels(), 1);
      const auto special = std::find(made.tokens.begin(), made.tokens.end(), 0);
      EXPECT_EQ(made.labels.back(), *(special + 1));
      EXPECT_GT(made.labels.back(), 0);
    }
  }
}

TEST_F(SyntheticTest, AssociativeRecallAsksForTheValueOfEachKey) {
  for (int trial = 0; trial < 10; ++trial) {
    const int64_t pairs = random_.Int(1, 9);
    const int64_t length = 4 * pairs + (trial == 0 ? 0 : random_.Int(0, 100));
    const int64_t vocab = 2 * pairs + (trial == 0 ? 0 : random_.Int(0, 100)), keys = vocab / 2;
    for (const Sequence& made : Make(AssociativeRecall(length, pairs, vocab), 20, random_.seed())) {
      std::map<int32_t, int32_t> value_of;
      for (int64_t i = 0; i < pairs; ++i) {
        const auto key = static_cast<size_t>(2 * i);
        EXPECT_LT(made.tokens[key], keys);
        EXPECT_GE(made.tokens[key + 1], keys);
        value_of[made.tokens[key]] = made.tokens[key + 1];
      }
      ASSERT_EQ(static_cast<int64_t>(value_of.size()), pairs);  // all different
      std::set<int32_t> asked;
      for (size_t t = 0; t < made.tokens.size(); ++t) {
        const bool query = t >= static_cast<size_t>(2 * pairs) && made.tokens[t] < keys;
        EXPECT_EQ(made.labels[t], query ? value_of.at(made.tokens[t]) : -1);
        if (query) asked.insert(made.tokens[t]);
      }
      EXPECT_EQ(static_cast<int64_t>(asked.size()), pairs);
      EXPECT_EQ(made.Labels(), pairs);
    }
  }
}

// The first of 32 places has 1 / (sum over i of i^-0.9) of the weight.
TEST_F(SyntheticTest, AssociativeRecallAsksSoonerRatherThanLater) {
  std::vector<int> at(32, 0);
  for (const Sequence& made : Make(AssociativeRecall(66, 1, 8), 4000, random_.seed())) {
    const auto query = std::find_if(made.labels.begin(), made.labels.end(),
                                    [](int32_t label) { return label >= 0; });
    ++at[static_cast<size_t>(query - made.labels.begin() - 2) / 2];
  }
  double weights = 0;
  for (int i = 1; i <= 32; ++i) weights += std::pow(i, -0.9);
  for (const int i : {1, 2, 8}) {
    const double share = std::pow(i, -0.9) / weights;
    EXPECT_NEAR(at[static_cast<size_t>(i - 1)], 4000 * share,
                5 * std::sqrt(4000 * share * (1 - share)))
        << i;
  }
}

TEST_F(SyntheticTest, ParityAsksWhetherTheOnesAreOdd) {
  std::set<int64_t> lengths;
  for (const int64_t shortest : {int64_t{1}, random_.Int(2, 12), int64_t{12}}) {
    for (const Sequence& made : Make(Parity(12, shortest), 300, random_.seed())) {
      const int64_t bits =
          std::find(made.tokens.begin(), made.tokens.end(), 2) - made.tokens.begin();
      EXPECT_GE(bits, shortest);
      EXPECT_EQ(std::count(made.tokens.begin() + bits, made.tokens.end(), 2), 12 - bits);
      EXPECT_EQ(made.Labels(), 1);
      EXPECT_EQ(made.labels[static_cast<size_t>(bits - 1)],
                std::accumulate(made.tokens.begin(), made.tokens.begin() + bits, 0) % 2);
      lengths.insert(bits);
    }
  }
  EXPECT_EQ(lengths.size(), 12u);  // each came
}

TEST_F(SyntheticTest, SequencesAreAFunctionOfSeedAndNumber) {
  for (const SyntheticTask& task : {SelectiveCopying(40, 4, 16), InductionHeads(40, 16),
                                    AssociativeRecall(40, 4, 64), Parity(40, 1)}) {
    SCOPED_TRACE(task.name);
    const uint64_t seed = random_.seed();
    const std::vector<Sequence> few = Make(task, 3, seed), many = Make(task, 50, seed);
    const std::vector<Sequence> others = Make(task, 50, seed + 1);
    for (size_t i = 0; i < few.size(); ++i) EXPECT_TRUE(Equal(few[i], many[i]));
    for (size_t i = 0; i < many.size(); ++i) {
      EXPECT_FALSE(Equal(many[i], many[(i + 1) % many.size()]) && task.name != "parity");
    }
    int same = 0;
    for (size_t i = 0; i < many.size(); ++i) same += Equal(many[i], others[i]) ? 1 : 0;
    EXPECT_LT(same, 25);
  }
}

TEST_F(SyntheticTest, RefusesSizesThatDoNotFit) {
  EXPECT_EQ(BadInput([] { SelectiveCopying(31, 16, 16); }),
            "--length: 31 is less than 32, --copied 16 tokens and their markers");
  EXPECT_NE(BadInput([] { SelectiveCopying(31, 0, 16); }).find("--copied"), std::string::npos);
  EXPECT_NE(BadInput([] { SelectiveCopying(64, 4, 3); }).find("--vocab"), std::string::npos);
  EXPECT_NE(BadInput([] { InductionHeads(2, 16); }).find("--length"), std::string::npos);
  EXPECT_NE(BadInput([] { InductionHeads(64, 2); }).find("--vocab"), std::string::npos);
  EXPECT_NE(BadInput([] { AssociativeRecall(64, 0, 64); }).find("--pairs"), std::string::npos);
  EXPECT_NE(BadInput([] { AssociativeRecall(64, 8, 15); }).find("--vocab"), std::string::npos);
  EXPECT_NE(BadInput([] { AssociativeRecall(31, 8, 64); }).find("--length"), std::string::npos);
  EXPECT_NE(BadInput([] { Parity(0, 1); }).find("--length"), std::string::npos);
  EXPECT_NE(BadInput([] { Parity(10, 11); }).find("--length"), std::string::npos);
  EXPECT_NE(BadInput([] { Parity(10, 0); }).find("--shortest"), std::string::npos);
}

}  // namespace
}  // namespace eyrie
