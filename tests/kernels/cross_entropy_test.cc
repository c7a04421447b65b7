#include "kernels/cross_entropy/cross_entropy.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

// N tokens, V columns of the whole vocabulary.
struct Result {
  double loss = 0;
  int64_t valid = 0;
  OwnedTensor z, du;  // [N, V]
};

// About every fifth label is to be ignored.
OwnedTensor RandomLabels(int64_t tokens, int64_t columns, TestRandom& random) {
  OwnedTensor labels(DType::kI32, {tokens});
  for (int64_t n = 0; n < tokens; ++n) {
    const bool ignored = random.Int(0, 4) == 0;
    Set(labels.tensor, n,
        static_cast<double>(ignored ? random.Int(-100, -1) : random.Int(0, columns - 1)));
  }
  return labels;
}

// Columns [begin, end) of a matrix.
OwnedTensor Columns(const Tensor& from, int64_t begin, int64_t end) {
  OwnedTensor part(from.dtype, {from.dim(0), end - begin});
  for (int64_t i = 0; i < part.tensor.size(); ++i) {
    const int64_t row = i / (end - begin);
    Set(part.tensor, i, Get(from, row * from.dim(1) + begin + i % (end - begin)));
  }
  return part;
}
void PasteColumns(const Tensor& part, const Tensor& whole, int64_t begin) {
  for (int64_t i = 0; i < part.size(); ++i) {
    Set(whole, i / part.dim(1) * whole.dim(1) + begin + i % part.dim(1), Get(part, i));
  }
}

// The kernels over shards of columns [cuts[i], cuts[i + 1]), reduced between steps as ranks do.
Result Solve(const Tensor& logits, const Tensor& labels, double cap, double scale,
             const std::vector<int64_t>& cuts) {
  const int64_t tokens = logits.dim(0);
  const size_t shards = cuts.size() - 1;
  const OwnedTensor row_max(logits.dtype, {tokens});
  const OwnedTensor partials(logits.dtype, {2, tokens});
  Result result{.z = OwnedTensor(logits.dtype, logits.shape),
                .du = OwnedTensor(logits.dtype, logits.shape)};
  std::vector<OwnedTensor> shard, own_max, own_partials;
  for (int64_t n = 0; n < tokens; ++n) Set(row_max.tensor, n, -INFINITY);
  for (size_t s = 0; s < shards; ++s) {
    shard.push_back(Columns(logits, cuts[s], cuts[s + 1]));
    own_max.push_back(PoisonedTensor(logits.dtype, {tokens}));
    own_partials.push_back(PoisonedTensor(logits.dtype, {2, tokens}));
    const Tensor own = own_max[s].tensor;
    const OwnedTensor capped = Clone(shard[s].tensor);
    SoftmaxPartials({.logits = shard[s].tensor,
                     .soft_cap = cap,
                     .labels = labels,
                     .first = cuts[s],
                     .row_max = own,
                     .partials = own_partials[s].tensor});
    if (cap > 0) SoftCap(capped.tensor, cap);
    EXPECT_TRUE(BitwiseEqual(capped.tensor, shard[s].tensor));
    PasteColumns(shard[s].tensor, result.z.tensor, cuts[s]);
    for (int64_t n = 0; n < tokens; ++n) {
      EXPECT_FALSE(std::isnan(Get(own, n)));
      Set(row_max.tensor, n, std::max(Get(row_max.tensor, n), Get(own, n)));
    }
  }
  for (size_t s = 0; s < shards; ++s) {
    // A rank on its own has nothing to rescale.
    const Tensor own = own_partials[s].tensor;
    if (shards > 1) RescalePartials(own_max[s].tensor, row_max.tensor, own);
    for (int64_t i = 0; i < 2 * tokens; ++i) {
      Set(partials.tensor, i, Get(partials.tensor, i) + Get(own, i));
    }
  }
  // It is added to.
  const OwnedTensor loss(DType::kF64, {2});
  Set(loss.tensor, 0, 1.0);
  Set(loss.tensor, 1, 2.0);
  CrossEntropyLoss(labels, row_max.tensor, partials.tensor, loss.tensor);
  result.loss = Get(loss.tensor, 0) - 1.0;
  result.valid = static_cast<int64_t>(Get(loss.tensor, 1)) - 2;
  for (size_t s = 0; s < shards; ++s) {
    // In place or not, the same.
    const OwnedTensor dlogits = PoisonedTensor(logits.dtype, shard[s].tensor.shape);
    for (const Tensor& out : {dlogits.tensor, shard[s].tensor}) {
      CrossEntropyGrad({.logits = shard[s].tensor,
                        .labels = labels,
                        .row_max = row_max.tensor,
                        .partials = partials.tensor,
                        .dlogits = out,
                        .first = cuts[s],
                        .soft_cap = cap,
                        .scale = scale});
    }
    EXPECT_TRUE(BitwiseEqual(dlogits.tensor, shard[s].tensor));
    PasteColumns(dlogits.tensor, result.du.tensor, cuts[s]);
  }
  return result;
}

// The definition in float64, from the uncapped logits.
Result Reference(const Tensor& logits, const Tensor& labels, double cap, double scale) {
  const int64_t columns = logits.dim(1);
  Result result{.z = OwnedTensor(DType::kF64, logits.shape),
                .du = OwnedTensor(DType::kF64, logits.shape)};
  for (int64_t n = 0; n < logits.dim(0); ++n) {
    const auto label = static_cast<int64_t>(Get(labels, n));
    double sum = 0;
    for (int64_t j = n * columns; j < (n + 1) * columns; ++j) {
      const double u = Get(logits, j);
      Set(result.z.tensor, j, cap > 0 ? cap * std::tanh(u / cap) : u);
      sum += std::exp(Get(result.z.tensor, j));
    }
    if (label < 0) continue;
    ++result.valid;
    result.loss += std::log(sum) - Get(result.z.tensor, n * columns + label);
    for (int64_t j = 0; j < columns; ++j) {
      const double u = Get(logits, n * columns + j);
      const double slope = cap > 0 ? 1 / std::pow(std::cosh(u / cap), 2) : 1;
      const double probability = std::exp(Get(result.z.tensor, n * columns + j)) / sum;
      Set(result.du.tensor, n * columns + j, scale * (probability - (j == label)) * slope);
    }
  }
  return result;
}

void ExpectNear(const Result& a, const Result& b, double scale, double tolerance) {
  EXPECT_EQ(a.valid, b.valid);
  EXPECT_LE(std::abs(a.loss - b.loss), tolerance * (1 + b.loss));
  EXPECT_LT(RelativeError(a.z.tensor, b.z.tensor), tolerance);
  // Against the scale: a label of probability near 1 leaves a gradient of rounding errors.
  EXPECT_LT(RelativeError(a.du.tensor, b.du.tensor, scale), tolerance);
}

TEST(CrossEntropy, MatchesTheDefinition) {
  TestRandom random;
  for (int64_t tokens : {1, 7, 33}) {
    for (int64_t columns : {2, 7, 130, 9001}) {
      for (double cap : {0.0, 3.0, 30.0}) {
        SCOPED_TRACE(StrCat("N=", tokens, " V=", columns, " cap=", cap));
        const OwnedTensor logits = RandomTensor(DType::kF64, {tokens, columns}, random, 4);
        const OwnedTensor narrow = Cast(logits.tensor, DType::kF32);
        const OwnedTensor labels = RandomLabels(tokens, columns, random);
        const double scale = random.Uniform(0.01, 1);
        const Result expected = Reference(logits.tensor, labels.tensor, cap, scale);
        ExpectNear(Solve(logits.tensor, labels.tensor, cap, scale, {0, columns}), expected, scale,
                   1e-12);
        ExpectNear(Solve(narrow.tensor, labels.tensor, cap, scale, {0, columns}), expected, scale,
                   1e-5);
      }
    }
  }
}

TEST(CrossEntropy, ShardsEqualTheWhole) {
  TestRandom random;
  const int64_t columns = 130;
  for (size_t shards : {2, 3, 4}) {
    std::vector<int64_t> cuts{0, columns};
    while (cuts.size() < shards + 1) {
      const int64_t cut = random.Int(1, columns - 1);
      if (std::find(cuts.begin(), cuts.end(), cut) == cuts.end()) cuts.push_back(cut);
      std::sort(cuts.begin(), cuts.end());
    }
    const OwnedTensor logits = RandomTensor(DType::kF64, {33, columns}, random, 4);
    const OwnedTensor labels = RandomLabels(33, columns, random);
    const Result whole = Solve(logits.tensor, labels.tensor, 30, 0.1, {0, columns});
    ExpectNear(Solve(logits.tensor, labels.tensor, 30, 0.1, cuts), whole, 0.1, 1e-13);
  }
}

TEST(CrossEntropy, GradientMatchesFiniteDifferences) {
  TestRandom random;
  for (double cap : {0.0, 5.0}) {
    const OwnedTensor logits = RandomTensor(DType::kF64, {9, 11}, random, 3);
    const OwnedTensor labels = RandomLabels(9, 11, random);
    Set(labels.tensor, 0, 4);  // at least one counts
    const auto loss = [&] { return Solve(logits.tensor, labels.tensor, cap, 1, {0, 11}).loss; };
    const Result result = Solve(logits.tensor, labels.tensor, cap, 1, {0, 11});
    EXPECT_LT(NumericGradientCheck(loss, logits.tensor, result.du.tensor, random, 3e-4, 99), 1e-6);
  }
}

TEST(CrossEntropy, LargeLogitsDoNotOverflowAndThreadsDoNotChangeABit) {
  TestRandom random;
  const OwnedTensor logits = RandomTensor(DType::kF32, {33, 1000}, random, 300);
  const OwnedTensor labels = RandomLabels(33, 1000, random);
  Result one, two;
  WithThreads(1, [&] { one = Solve(logits.tensor, labels.tensor, 0, 1, {0, 1000}); });
  WithThreads(2, [&] { two = Solve(logits.tensor, labels.tensor, 0, 1, {0, 1000}); });
  EXPECT_TRUE(std::isfinite(one.loss));
  EXPECT_EQ(one.loss, two.loss);
  EXPECT_TRUE(BitwiseEqual(one.du.tensor, two.du.tensor));
  EXPECT_TRUE(std::isfinite(Dot(one.du.tensor, one.du.tensor)));
}

TEST(CrossEntropy, RefusesWrongArguments) {
  const OwnedTensor logits(DType::kF32, {4, 5}), four(DType::kF32, {4}), three(DType::kF32, {3});
  const OwnedTensor labels(DType::kI32, {4}), partials(DType::kF32, {2, 4});
  const auto statistics = [&](const OwnedTensor& row_max, const OwnedTensor& sums) {
    SoftmaxPartials({.logits = logits.tensor,
                     .labels = labels.tensor,
                     .row_max = row_max.tensor,
                     .partials = sums.tensor});
  };
  EXPECT_NO_THROW(statistics(four, partials));
  EXPECT_THROW(statistics(three, partials), Error);
  EXPECT_THROW(statistics(four, four), Error);
  EXPECT_NO_THROW(RescalePartials(four.tensor, four.tensor, partials.tensor));
  EXPECT_THROW(RescalePartials(three.tensor, four.tensor, partials.tensor), Error);
  EXPECT_THROW(RescalePartials(four.tensor, four.tensor, four.tensor), Error);
  EXPECT_THROW(SoftCap(logits.tensor, 0), Error);
  const OwnedTensor total(DType::kF64, {2});
  const auto loss = [&](const OwnedTensor& sums) {
    CrossEntropyLoss(labels.tensor, four.tensor, sums.tensor, total.tensor);
  };
  EXPECT_NO_THROW(loss(partials));
  EXPECT_THROW(loss(four), Error);
  EXPECT_THROW(loss(OwnedTensor()), Error);
  EXPECT_THROW(CrossEntropyLoss(labels.tensor, four.tensor, partials.tensor, four.tensor), Error);
  EXPECT_THROW(CrossEntropyGrad({.logits = logits.tensor,
                                 .labels = labels.tensor,
                                 .row_max = four.tensor,
                                 .partials = partials.tensor}),
               Error);
}

// The largest id of those that share the maximum, however the columns are cut.
TEST(CrossEntropy, ArgmaxIsTheSameOnAnyShards) {
  TestRandom random;
  for (const DType type : {DType::kF32, DType::kF64}) {
    for (int trial = 0; trial < 20; ++trial) {
      const int64_t tokens = random.Int(1, 40), columns = random.Int(1, 70);
      OwnedTensor logits(type, {tokens, columns});
      // Whole numbers, so that many are equal.
      for (int64_t i = 0; i < logits.tensor.size(); ++i) {
        Set(logits.tensor, i, static_cast<double>(random.Int(-3, 3)));
      }
      OwnedTensor row_max(type, {tokens}), predicted(DType::kI32, {tokens});
      SoftmaxPartials({.logits = logits.tensor,
                       .labels = predicted.tensor,
                       .row_max = row_max.tensor,
                       .partials = OwnedTensor(type, {2, tokens}).tensor});
      std::vector<int64_t> cuts = {0, random.Int(0, columns), random.Int(0, columns), columns};
      std::sort(cuts.begin(), cuts.end());
      FillZero(predicted.tensor);
      for (size_t s = 0; s + 1 < cuts.size(); ++s) {
        if (cuts[s] == cuts[s + 1]) continue;
        const OwnedTensor shard = Columns(logits.tensor, cuts[s], cuts[s + 1]);
        const OwnedTensor here(DType::kI32, {tokens});
        RowArgmax({.logits = shard.tensor,
                   .first = cuts[s],
                   .row_max = row_max.tensor,
                   .predicted = here.tensor});
        for (int64_t n = 0; n < tokens; ++n) {
          const double id = Get(here.tensor, n);
          EXPECT_TRUE(id == -1 || (id >= static_cast<double>(cuts[s]) &&
                                   id < static_cast<double>(cuts[s + 1])));
          Set(predicted.tensor, n, std::max(Get(predicted.tensor, n), id));
        }
      }
      for (int64_t n = 0; n < tokens; ++n) {
        int64_t best = 0;
        for (int64_t j = 1; j < columns; ++j) {
          if (Get(logits.tensor, n * columns + j) >= Get(logits.tensor, n * columns + best))
            best = j;
        }
        EXPECT_EQ(predicted.tensor.data<int32_t>()[n], best);
      }
    }
  }
}

TEST(CrossEntropy, ArgmaxRefusesWrongShapesAndTypes) {
  const OwnedTensor logits(DType::kF32, {4, 5}), four(DType::kF32, {4});
  const OwnedTensor ids(DType::kI32, {4}), three(DType::kI32, {3});
  const auto argmax = [&](const OwnedTensor& row_max, const OwnedTensor& predicted) {
    RowArgmax({.logits = logits.tensor, .row_max = row_max.tensor, .predicted = predicted.tensor});
  };
  EXPECT_NO_THROW(argmax(four, ids));
  EXPECT_THROW(argmax(four, three), Error);
  EXPECT_THROW(argmax(four, four), Error);
  EXPECT_THROW(argmax(ids, ids), Error);
  EXPECT_THROW(argmax(four, OwnedTensor()), Error);
}

}  // namespace
}  // namespace eyrie
