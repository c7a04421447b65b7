// CUDA bodies of the embedding against the CPU's in float64.
#include "kernels/embedding/embedding.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

// Draws token n.
using Draw = std::function<int64_t(int64_t n)>;

// N tokens, V rows of the table from row `first` on, D width.
void Compare(int64_t count, int64_t rows, int64_t first, int64_t width, const Draw& draw,
             DType dtype, TestRandom& random) {
  SCOPED_TRACE(StrCat(Name(dtype), " N ", count, " V ", rows, " from ", first, " D ", width));
  const double scale = random.Uniform(0.5, 8);
  const OwnedTensor tokens(DType::kI32, {count});
  for (int64_t n = 0; n < count; ++n) Set(tokens.tensor, n, static_cast<double>(draw(n)));
  const OwnedTensor table = RandomTensor(DType::kF32, {rows, width}, random);
  const OwnedTensor dy = RandomTensor(DType::kF32, {count, width}, random);
  const OwnedTensor dtable = RandomTensor(DType::kF32, {rows, width}, random);
  const auto run = [&](const Tensor& ids, const Tensor& from, const Tensor& y, const Tensor& d,
                       const Tensor& dfrom, const Tensor& workspace) {
    EmbeddingForward({.tokens = ids, .table = from, .first_row = first, .scale = scale, .y = y});
    EmbeddingBackward({.tokens = ids,
                       .first_row = first,
                       .scale = scale,
                       .dy = d,
                       .dtable = dfrom,
                       .workspace = workspace});
  };
  const OwnedTensor expected_y = PoisonedTensor(DType::kF64, {count, width});
  const OwnedTensor expected = Cast(dtable.tensor, DType::kF64);
  run(tokens.tensor, Rounded(table.tensor, dtype).tensor, expected_y.tensor,
      Rounded(dy.tensor, dtype).tensor, expected.tensor, {});

  const OwnedTensor ids = ToCuda(tokens.tensor), from = ToCuda(table.tensor, dtype);
  const OwnedTensor d = ToCuda(dy.tensor, dtype), y = PoisonedCuda(dtype, {count, width});
  const OwnedTensor one = ToCuda(dtable.tensor), two = ToCuda(dtable.tensor);
  const OwnedTensor workspace =
      PoisonedCuda(DType::kF32, {EmbeddingBackwardWorkspace(ids.tensor, one.tensor)});
  for (const OwnedTensor* result : {&one, &two}) {
    run(ids.tensor, from.tensor, y.tensor, d.tensor, result->tensor, workspace.tensor);
  }
  EXPECT_LT(RelativeError(ToHost(y.tensor).tensor, expected_y.tensor), Tolerance(dtype));
  EXPECT_LT(RelativeError(ToHost(one.tensor).tensor, expected.tensor, 1), 1e-5);
  EXPECT_TRUE(BitwiseEqual(ToHost(one.tensor).tensor, ToHost(two.tensor).tensor));
}

TEST(CudaEmbedding, MatchesTheCpu) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (int64_t width : {1, 7, 64, 130, 520}) {
      for (int64_t count : {1, 31, 32, 33, 64, 1000}) {
        const int64_t rows = random.Int(1, 40), first = random.Int(0, 10);
        Compare(
            count, rows, first, width, [&](int64_t) { return random.Int(0, 50); }, dtype, random);
      }
    }
  }
}

// Runs of equal tokens that begin and end anywhere in a piece of 32, and span many.
TEST(CudaEmbedding, LongRuns) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (int64_t width : {5, 132}) {
      for (int64_t count : {32, 64, 96, 1000, 5001}) {
        Compare(
            count, 3, 0, width, [](int64_t) { return 1; }, dtype, random);
        Compare(
            count, 9, 2, width, [&](int64_t) { return 2 + random.Int(0, 2); }, dtype, random);
        // One token is most of all, between others.
        Compare(
            count, 30, 0, width,
            [&](int64_t) { return random.Int(0, 9) < 8 ? 7 : random.Int(0, 29); }, dtype, random);
        // None of the tokens is here.
        Compare(
            count, 4, 50, width, [&](int64_t) { return random.Int(0, 49); }, dtype, random);
        // Whole pieces: run lengths are multiples of 32.
        Compare(
            count, 200, 0, width, [](int64_t n) { return n / 32; }, dtype, random);
        Compare(
            count, 200, 0, width, [](int64_t n) { return n / 64; }, dtype, random);
      }
    }
  }
}

TEST(CudaEmbedding, LargeVocabulary) {
  TestRandom random;
  Compare(
      4099, 100003, 1000, 24, [&](int64_t) { return random.Int(0, 110000); }, DType::kBF16, random);
}

TEST(CudaEmbedding, RefusesWrongTypes) {
  const OwnedTensor tokens = ZeroCuda(DType::kI32, {3}), dy = ZeroCuda(DType::kBF16, {3, 4});
  const auto backward = [&](DType dtype, int64_t missing) {
    const OwnedTensor dtable = ZeroCuda(dtype, {5, 4});
    const OwnedTensor workspace =
        ZeroCuda(DType::kF32, {EmbeddingBackwardWorkspace(tokens.tensor, dtable.tensor) - missing});
    EmbeddingBackward({.tokens = tokens.tensor,
                       .dy = dy.tensor,
                       .dtable = dtable.tensor,
                       .workspace = workspace.tensor});
  };
  EXPECT_NO_THROW(backward(DType::kF32, 0));
  EXPECT_THROW(backward(DType::kF32, 1), Error);
  EXPECT_THROW(backward(DType::kBF16, 0), Error);
}

}  // namespace
}  // namespace eyrie
