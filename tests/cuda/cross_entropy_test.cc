// CUDA bodies of the cross-entropy against the CPU's in float64.
#include "kernels/cross_entropy/cross_entropy.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

// N tokens, V columns from column `first` on, on one device; and what the four steps make of them.
struct Case {
  OwnedTensor logits, labels, row_max, partials, loss, dlogits;
  int64_t first = 0;
  double cap = 0, scale = 1;

  // `in_place`: the gradient takes the place of the logits.
  void Run(bool in_place) {
    SoftmaxPartials({.logits = logits.tensor,
                     .soft_cap = cap,
                     .labels = labels.tensor,
                     .first = first,
                     .row_max = row_max.tensor,
                     .partials = partials.tensor});
    CrossEntropyLoss(labels.tensor, row_max.tensor, partials.tensor, loss.tensor);
    CrossEntropyGrad({.logits = logits.tensor,
                      .labels = labels.tensor,
                      .row_max = row_max.tensor,
                      .partials = partials.tensor,
                      .dlogits = in_place ? logits.tensor : dlogits.tensor,
                      .first = first,
                      .soft_cap = cap,
                      .scale = scale});
  }
};

// About every fifth label is to be ignored; some are in other columns.
OwnedTensor RandomLabels(int64_t tokens, int64_t columns, int64_t first, TestRandom& random) {
  OwnedTensor labels(DType::kI32, {tokens});
  for (int64_t n = 0; n < tokens; ++n) {
    const bool ignored = random.Int(0, 4) == 0;
    Set(labels.tensor, n,
        static_cast<double>(ignored ? random.Int(-100, -1) : random.Int(0, first + columns + 5)));
  }
  return labels;
}

// `type` is that of dlogits.
void Compare(int64_t tokens, int64_t columns, double cap, DType type, TestRandom& random) {
  SCOPED_TRACE(StrCat(Name(type), " N ", tokens, " V ", columns, " cap ", cap));
  const int64_t first = random.Int(0, 3) * columns;
  const double scale = random.Uniform(0.01, 1);
  const OwnedTensor logits = RandomTensor(DType::kF32, {tokens, columns}, random, 4);
  const OwnedTensor labels = RandomLabels(tokens, columns, first, random);
  Case here{.logits = Cast(logits.tensor, DType::kF64),
            .labels = Clone(labels.tensor),
            .row_max = PoisonedTensor(DType::kF64, {tokens}),
            .partials = PoisonedTensor(DType::kF64, {2, tokens}),
            .loss = OwnedTensor(DType::kF64, {2}),
            .dlogits = PoisonedTensor(DType::kF64, {tokens, columns}),
            .first = first,
            .cap = cap,
            .scale = scale};
  here.Run(false);
  const auto there = [&](bool in_place) {
    Case c{.logits = ToCuda(logits.tensor),
           .labels = ToCuda(labels.tensor),
           .row_max = PoisonedCuda(DType::kF32, {tokens}),
           .partials = PoisonedCuda(DType::kF32, {2, tokens}),
           .loss = ZeroCuda(DType::kF64, {2}),
           .dlogits = PoisonedCuda(type, {tokens, columns}),
           .first = first,
           .cap = cap,
           .scale = scale};
    c.Run(in_place);
    return c;
  };
  const Case one = there(false), two = there(false);
  const auto compare = [&](const OwnedTensor Case::*which, double bound, double floor) {
    const OwnedTensor result = ToHost((one.*which).tensor);
    EXPECT_LT(RelativeError(result.tensor, (here.*which).tensor, floor), bound);
    EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost((two.*which).tensor).tensor));
  };
  compare(&Case::logits, 1e-6, 0);
  compare(&Case::row_max, 1e-6, 0);
  compare(&Case::partials, 1e-5, 0);
  compare(&Case::loss, 1e-5, 1);
  EXPECT_EQ(Get(ToHost(one.loss.tensor).tensor, 1), Get(here.loss.tensor, 1));
  // Against the scale: a label of probability near 1 leaves a gradient of rounding errors.
  compare(&Case::dlogits, Tolerance(type), scale);
  if (cap == 0) {  // not even a copy of the logits is written
    EXPECT_EQ(
        RelativeError(ToHost(one.logits.tensor).tensor, Cast(logits.tensor, DType::kF64).tensor),
        0.0);
  }
  if (type == DType::kF32) {
    const Case in_place = there(true);
    EXPECT_TRUE(
        BitwiseEqual(ToHost(in_place.logits.tensor).tensor, ToHost(one.dlogits.tensor).tensor));
  }
}

TEST(CudaCrossEntropy, MatchesTheCpu) {
  TestRandom random;
  for (DType type : kCudaTypes) {
    for (double cap : {0.0, 3.0, 30.0}) {
      for (int64_t tokens : {1, 7, 33}) {
        for (int64_t columns : {2, 7, 130, 512, 9001, 32000}) {
          Compare(tokens, columns, cap, type, random);
        }
      }
    }
  }
}

// A thread that meets nothing but infinities adds nothing to its row.
TEST(CudaCrossEntropy, MinusInfinityIsAProbabilityOfZero) {
  TestRandom random;
  const int64_t tokens = 3, columns = 9001;
  const OwnedTensor logits = RandomTensor(DType::kF32, {tokens, columns}, random, 4);
  OwnedTensor labels(DType::kI32, {tokens});
  for (int64_t n = 0; n < tokens; ++n) {
    const int64_t finite = n == 0 ? columns / 2 : n == 1 ? 1 : columns;  // the last ones
    for (int64_t j = 0; j < columns - finite; ++j) Set(logits.tensor, n * columns + j, -INFINITY);
    Set(labels.tensor, n, static_cast<double>(columns - 1));
  }
  const OwnedTensor here = Cast(logits.tensor, DType::kF64), there = ToCuda(logits.tensor);
  const OwnedTensor largest = PoisonedTensor(DType::kF64, {tokens}),
                    partials = PoisonedTensor(DType::kF64, {2, tokens}),
                    cuda_largest = PoisonedCuda(DType::kF32, {tokens}),
                    cuda_partials = PoisonedCuda(DType::kF32, {2, tokens});
  SoftmaxPartials({.logits = here.tensor,
                   .labels = labels.tensor,
                   .row_max = largest.tensor,
                   .partials = partials.tensor});
  SoftmaxPartials({.logits = there.tensor,
                   .labels = ToCuda(labels.tensor).tensor,
                   .row_max = cuda_largest.tensor,
                   .partials = cuda_partials.tensor});
  EXPECT_LT(RelativeError(ToHost(cuda_largest.tensor).tensor, largest.tensor), 1e-6);
  EXPECT_LT(RelativeError(ToHost(cuda_partials.tensor).tensor, partials.tensor), 1e-5);
}

// Whole numbers, so that many are equal.
TEST(CudaCrossEntropy, ArgmaxIsTheCpus) {
  TestRandom random;
  for (int64_t columns : {1, 2, 7, 130, 512, 9001, 32000}) {
    const int64_t tokens = random.Int(1, 40), first = random.Int(0, 100);
    OwnedTensor logits(DType::kF32, {tokens, columns}), row_max(DType::kF32, {tokens});
    for (int64_t i = 0; i < logits.tensor.size(); ++i) {
      Set(logits.tensor, i, static_cast<double>(random.Int(-3, 3)));
    }
    for (int64_t n = 0; n < tokens; ++n) {
      double largest = -3;
      for (int64_t j = 0; j < columns; ++j) {
        largest = std::max(largest, Get(logits.tensor, n * columns + j));
      }
      Set(row_max.tensor, n, n == 0 ? 4 : largest);  // the first is another rank's
    }
    const OwnedTensor expected = PoisonedTensor(DType::kI32, {tokens});
    const OwnedTensor there = PoisonedCuda(DType::kI32, {tokens});
    RowArgmax({.logits = logits.tensor,
               .first = first,
               .row_max = row_max.tensor,
               .predicted = expected.tensor});
    RowArgmax({.logits = ToCuda(logits.tensor).tensor,
               .first = first,
               .row_max = ToCuda(row_max.tensor).tensor,
               .predicted = there.tensor});
    EXPECT_TRUE(BitwiseEqual(ToHost(there.tensor).tensor, expected.tensor)) << columns;
  }
}

TEST(CudaCrossEntropy, ManyTokensAndColumns) {
  TestRandom random;
  Compare(3001, 12, 0, DType::kBF16, random);
  Compare(2, 256000, 30, DType::kBF16, random);
  Compare(2, 256001, 30, DType::kF32, random);
}

TEST(CudaCrossEntropy, LargeLogitsDoNotOverflow) {
  TestRandom random;
  Case c{.logits = ToCuda(RandomTensor(DType::kF32, {9, 1000}, random, 300).tensor),
         .labels = ToCuda(RandomLabels(9, 900, 0, random).tensor),
         .row_max = PoisonedCuda(DType::kF32, {9}),
         .partials = PoisonedCuda(DType::kF32, {2, 9}),
         .loss = ZeroCuda(DType::kF64, {2}),
         .dlogits = PoisonedCuda(DType::kBF16, {9, 1000})};
  c.Run(false);
  const OwnedTensor loss = ToHost(c.loss.tensor), d = ToHost(c.dlogits.tensor);
  EXPECT_TRUE(std::isfinite(Get(loss.tensor, 0)));
  EXPECT_TRUE(std::isfinite(Dot(d.tensor, d.tensor)));
}

TEST(CudaCrossEntropy, CapsAlone) {
  TestRandom random;
  for (const int64_t columns : {1, 7, 12, 9001}) {
    const OwnedTensor logits = RandomTensor(DType::kF32, {5, columns}, random, 40);
    const OwnedTensor expected = Cast(logits.tensor, DType::kF64), there = ToCuda(logits.tensor);
    SoftCap(expected.tensor, 30);
    SoftCap(there.tensor, 30);
    EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, expected.tensor), 1e-6);
  }
}

// As another rank's maxima, further up or as large, ask for it.
TEST(CudaCrossEntropy, RescalesItsSums) {
  TestRandom random;
  for (const int64_t tokens : {1, 300}) {
    const OwnedTensor own = RandomTensor(DType::kF32, {tokens}, random), all = Clone(own.tensor);
    for (int64_t n = 0; n < tokens; ++n) {
      Set(all.tensor, n, Get(own.tensor, n) + static_cast<double>(random.Int(0, 3)));
    }
    const OwnedTensor partials = RandomTensor(DType::kF32, {2, tokens}, random);
    const OwnedTensor expected = Cast(partials.tensor, DType::kF64),
                      there = ToCuda(partials.tensor);
    RescalePartials(Cast(own.tensor, DType::kF64).tensor, Cast(all.tensor, DType::kF64).tensor,
                    expected.tensor);
    RescalePartials(ToCuda(own.tensor).tensor, ToCuda(all.tensor).tensor, there.tensor);
    EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, expected.tensor), 1e-6);
  }
}

TEST(CudaCrossEntropy, RefusesWrongTypes) {
  const OwnedTensor narrow = ZeroCuda(DType::kBF16, {4, 5}), four = ZeroCuda(DType::kF32, {4});
  const OwnedTensor narrow_max = ZeroCuda(DType::kBF16, {4}), wide = ZeroCuda(DType::kF32, {4, 5});
  const OwnedTensor labels = ZeroCuda(DType::kI32, {4}), sums = ZeroCuda(DType::kF32, {2, 4});
  const auto run = [&](const OwnedTensor& logits, const OwnedTensor& row_max) {
    SoftmaxPartials({.logits = logits.tensor,
                     .labels = labels.tensor,
                     .row_max = row_max.tensor,
                     .partials = sums.tensor});
  };
  EXPECT_NO_THROW(run(wide, four));
  EXPECT_THROW(run(narrow, narrow_max), Error);
  EXPECT_THROW(run(wide, narrow_max), Error);
}

}  // namespace
}  // namespace eyrie
