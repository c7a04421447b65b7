#include "kernels/embedding/embedding.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

// Global token ids, some more than once.
OwnedTensor RandomTokens(Shape shape, int64_t vocabulary, TestRandom& random) {
  OwnedTensor tokens(DType::kI32, shape);
  for (int64_t i = 0; i < shape.size(); ++i) {
    Set(tokens.tensor, i, static_cast<double>(random.Int(0, vocabulary - 1)));
  }
  return tokens;
}

// N tokens, V rows of the table, D width; the shard holds rows [first, first + V).
TEST(Embedding, MatchesTheDefinition) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    const double tolerance = dtype == DType::kF32 ? 1e-5 : 1e-13;
    for (int64_t width : {1, 7, 64, 130, 200}) {
      for (int64_t time : {1, 7, 130}) {
        const int64_t rows = random.Int(1, 20);
        const int64_t first = random.Int(0, 10);
        const double scale = random.Uniform(0.5, 8);
        const OwnedTensor tokens = RandomTokens({3, time}, 30, random);
        const OwnedTensor table = RandomTensor(dtype, {rows, width}, random);
        const OwnedTensor dy = RandomTensor(dtype, {3, time, width}, random);
        const OwnedTensor y = PoisonedTensor(dtype, {3, time, width});
        const OwnedTensor dtable = RandomTensor(dtype, {rows, width}, random);
        OwnedTensor expected_y(DType::kF64, {3, time, width});
        const OwnedTensor expected_dtable = Cast(dtable.tensor, DType::kF64);
        for (int64_t i = 0; i < expected_y.tensor.size(); ++i) {
          const int64_t row = static_cast<int64_t>(Get(tokens.tensor, i / width)) - first;
          if (row < 0 || row >= rows) continue;
          const int64_t at = row * width + i % width;
          Set(expected_y.tensor, i, scale * Get(table.tensor, at));
          Set(expected_dtable.tensor, at,
              Get(expected_dtable.tensor, at) + scale * Get(dy.tensor, i));
        }
        EmbeddingForward({.tokens = tokens.tensor,
                          .table = table.tensor,
                          .first_row = first,
                          .scale = scale,
                          .y = y.tensor});
        EmbeddingBackward({.tokens = tokens.tensor,
                           .first_row = first,
                           .scale = scale,
                           .dy = dy.tensor,
                           .dtable = dtable.tensor});
        EXPECT_LT(RelativeError(y.tensor, expected_y.tensor), tolerance);
        EXPECT_LT(RelativeError(dtable.tensor, expected_dtable.tensor, scale), tolerance);
      }
    }
  }
}

TEST(Embedding, GradientMatchesFiniteDifferences) {
  TestRandom random;
  const OwnedTensor tokens = RandomTokens({40}, 12, random);
  const OwnedTensor table = RandomTensor(DType::kF64, {8, 6}, random);
  const OwnedTensor dy = RandomTensor(DType::kF64, {40, 6}, random);
  const OwnedTensor y = PoisonedTensor(DType::kF64, {40, 6});
  const OwnedTensor dtable(DType::kF64, {8, 6});
  EmbeddingBackward({.tokens = tokens.tensor,
                     .first_row = 2,
                     .scale = 3.0,
                     .dy = dy.tensor,
                     .dtable = dtable.tensor});
  const auto loss = [&] {
    EmbeddingForward({.tokens = tokens.tensor,
                      .table = table.tensor,
                      .first_row = 2,
                      .scale = 3.0,
                      .y = y.tensor});
    return Dot(y.tensor, dy.tensor);
  };
  EXPECT_LT(NumericGradientCheck(loss, table.tensor, dtable.tensor, random), 1e-6);
}

TEST(Embedding, ShardsAddUpToTheWholeTable) {
  TestRandom random;
  const OwnedTensor tokens = RandomTokens({2, 33}, 12, random);
  const OwnedTensor table = RandomTensor(DType::kF64, {12, 20}, random);
  const OwnedTensor whole = PoisonedTensor(DType::kF64, {2, 33, 20});
  EmbeddingForward({.tokens = tokens.tensor, .table = table.tensor, .y = whole.tensor});
  OwnedTensor sum(DType::kF64, {2, 33, 20});
  for (int64_t first = 0; first < 12; first += 4) {
    const OwnedTensor part = PoisonedTensor(DType::kF64, {2, 33, 20});
    EmbeddingForward({.tokens = tokens.tensor,
                      .table = table.tensor.Rows(first, first + 4),
                      .first_row = first,
                      .y = part.tensor});
    for (int64_t i = 0; i < sum.tensor.size(); ++i) {
      Set(sum.tensor, i, Get(sum.tensor, i) + Get(part.tensor, i));
    }
  }
  EXPECT_EQ(RelativeError(sum.tensor, whole.tensor), 0.0);
}

TEST(Embedding, ThreadsDoNotChangeABit) {
  TestRandom random;
  const OwnedTensor tokens = RandomTokens({1000}, 10, random);
  const OwnedTensor dy = RandomTensor(DType::kF32, {1000, 200}, random);
  OwnedTensor one(DType::kF32, {10, 200});
  OwnedTensor two(DType::kF32, {10, 200});
  const auto backward = [&](const OwnedTensor& dtable) {
    EmbeddingBackward(
        {.tokens = tokens.tensor, .scale = 1.5, .dy = dy.tensor, .dtable = dtable.tensor});
  };
  WithThreads(1, [&] { backward(one); });
  WithThreads(2, [&] { backward(two); });
  EXPECT_TRUE(BitwiseEqual(one.tensor, two.tensor));
}

TEST(Embedding, RefusesWrongArguments) {
  const OwnedTensor tokens(DType::kI32, {2, 3});
  const OwnedTensor table(DType::kF32, {5, 4});
  const auto forward = [&](const OwnedTensor& y) {
    EmbeddingForward({.tokens = tokens.tensor, .table = table.tensor, .y = y.tensor});
  };
  EXPECT_NO_THROW(forward(OwnedTensor(DType::kF32, {2, 3, 4})));
  EXPECT_THROW(forward(OwnedTensor(DType::kF32, {2, 2, 4})), Error);
  EXPECT_THROW(forward(OwnedTensor(DType::kF32, {2, 3, 5})), Error);
  EXPECT_THROW(forward(OwnedTensor(DType::kF32, {2, 6, 2})), Error);
  EXPECT_THROW(forward(OwnedTensor(DType::kF64, {2, 3, 4})), Error);
  EXPECT_THROW(forward(OwnedTensor()), Error);
}

}  // namespace
}  // namespace eyrie
