// Attention on the GPU against the CPU body in float64.
#include "kernels/attention/attention.h"

#include "tests/cuda/cuda_test_util.h"
#include "tests/kernels/attention_problem.h"

namespace eyrie {
namespace attention_test {
namespace {

OwnedTensor CudaOrNone(const OwnedTensor& from, DType dtype) {
  return from.tensor.size() > 0 ? ToCuda(from.tensor, dtype) : OwnedTensor();
}

Problem CudaProblem(const Problem& p, DType dtype) {
  return Problem{.batch = p.batch,
                 .time = p.time,
                 .heads = p.heads,
                 .width = p.width,
                 .past = p.past,
                 .window = p.window,
                 .q = ToCuda(p.q.tensor, dtype),
                 .k = ToCuda(p.k.tensor, dtype),
                 .v = ToCuda(p.v.tensor, dtype),
                 .past_k = CudaOrNone(p.past_k, dtype),
                 .past_v = CudaOrNone(p.past_v, dtype),
                 .positions = ToCuda(p.positions.tensor),
                 .dout = ToCuda(p.dout.tensor, dtype)};
}

Results CudaOutputs(const Problem& p, DType dtype) {
  const auto poisoned = [&](Shape shape) {
    return shape.size() > 0 ? PoisonedCuda(dtype, shape) : OwnedTensor();
  };
  const Shape keys{p.batch, p.time, p.width}, past{p.batch, p.past, p.width};
  return Results{.o = poisoned({p.batch, p.time, p.heads, p.width}),
                 .lse = PoisonedCuda(FullPrecision(dtype), {p.batch, p.time, p.heads}),
                 .dq = poisoned({p.batch, p.time, p.heads, p.width}),
                 .dk = poisoned(keys),
                 .dv = poisoned(keys),
                 .dpast_k = poisoned(past),
                 .dpast_v = poisoned(past)};
}

Results SolveOnCuda(const Problem& on_cuda, DType dtype) {
  Results r = CudaOutputs(on_cuda, dtype);
  Forward(on_cuda, r);
  Backward(on_cuda, r);
  return r;
}

// The results on the host in float64. Gradients of a past without rows stay empty.
Results OnHost(const Results& r, const Problem& p) {
  const auto host = [&](const OwnedTensor& from) {
    return from.tensor.defined() ? ToHost(from.tensor)
                                 : OwnedTensor(DType::kF64, {p.batch, p.past, p.width});
  };
  return Results{.o = host(r.o),
                 .lse = host(r.lse),
                 .dq = host(r.dq),
                 .dk = host(r.dk),
                 .dv = host(r.dv),
                 .dpast_k = host(r.dpast_k),
                 .dpast_v = host(r.dpast_v)};
}

// The same numbers as the GPU gets them.
Problem RoundedProblem(const Problem& p, DType dtype) {
  return CastProblem(CastProblem(p, dtype), DType::kF64);
}

void Check(const Problem& problem, DType dtype) {
  SCOPED_TRACE(StrCat(Name(dtype), " B=", problem.batch, " T=", problem.time, " H=", problem.heads,
                      " dh=", problem.width, " P=", problem.past, " window=", problem.window));
  const Results results = OnHost(SolveOnCuda(CudaProblem(problem, dtype), dtype), problem);
  const Problem rounded = RoundedProblem(problem, dtype);
  Results expected = Outputs(rounded, DType::kF64);
  Forward(rounded, expected);
  EXPECT_LT(ErrorOf(results.o, expected.o), Tolerance(dtype));
  EXPECT_LT(ErrorOf(results.lse, expected.lse), Tolerance(dtype));
  // The backward pass is given what the forward pass wrote, rounded; so is its reference. Where a
  // row sees two keys of nearly the same dP, their gradients are far smaller than dout . o, and
  // rounding o to bfloat16 alone may change them by more than a hundredth.
  Copy(results.o.tensor, expected.o.tensor);
  Copy(results.lse.tensor, expected.lse.tensor);
  Backward(rounded, expected);
  ExpectNear(results, expected, Tolerance(dtype));
}
void Check(const Problem& problem) {
  for (DType dtype : kCudaTypes) Check(problem, dtype);
}

void ExpectSameBitsAgain(const Problem& on_cuda, DType dtype) {
  const auto solve = [&] { return OnHost(SolveOnCuda(on_cuda, dtype), on_cuda); };
  ExpectSameBits(solve(), solve());
}

using TypeAndWidth = std::tuple<DType, int64_t>;
class CudaAttentionOfWidth : public testing::TestWithParam<TypeAndWidth> {};

TEST_P(CudaAttentionOfWidth, MatchesTheCpu) {
  TestRandom random;
  const auto [dtype, width] = GetParam();
  for (int64_t heads : {1, 3, 10, 16}) {
    for (int64_t window : {int64_t{0}, int64_t{1}, random.Int(2, 90), int64_t{5000}}) {
      const int64_t batch = random.Int(1, 2), time = random.Int(1, 140);
      const int64_t past = random.Int(0, 1) * random.Int(1, 150);
      Check(MakeProblem(batch, time, heads, width, past, window,
                        random.Int(0, 1) == 0 ? 1000000 : random.Int(1, 100), random),
            dtype);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaAttentionOfWidth,
                         InBothTypes(testing::Values(64, 128, 256, 96, 8, 20, 4)),
                         kNameOfParameter);

// Of more rows and keys than a block takes.
class CudaAttentionOfBlocks : public testing::TestWithParam<TypeAndWidth> {};

TEST_P(CudaAttentionOfBlocks, ShareKeysAndRows) {
  TestRandom random;
  const auto [dtype, width] = GetParam();
  // Rows for several tiles, keys for several parts; the last one has documents.
  Check(MakeProblem(1, 515, 3, width, 0, 0, 1000000, random), dtype);
  Check(MakeProblem(1, 515, 10, width, 77, 130, 1000000, random), dtype);
  Check(MakeProblem(2, 515, 3, width, 260, 0, 60, random), dtype);
}

TEST_P(CudaAttentionOfBlocks, DecodeOverALongPast) {
  TestRandom random;
  const auto [dtype, width] = GetParam();
  for (int64_t window : {0, 2048}) {
    Problem problem = MakeProblem(2, 1, 16, width, 5000, window, 1000000, random);
    Set(problem.positions.tensor, 0, 5000);
    Check(problem, dtype);
  }
}

TEST_P(CudaAttentionOfBlocks, GiveTheSameBitsAgain) {
  TestRandom random;
  const auto [dtype, width] = GetParam();
  ExpectSameBitsAgain(CudaProblem(MakeProblem(2, 333, 10, width, 40, 0, 200, random), dtype),
                      dtype);
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaAttentionOfBlocks,
                         InBothTypes(testing::Values(64, 128, 256, 200, 20)), kNameOfParameter);

// On the tensor cores, whose blocks are the largest: in bfloat16, of rows of whole vectors.
class CudaAttentionOfManyKeys : public testing::TestWithParam<int64_t> {};

// Where blocks see all keys of their rows, several tiles of them, and take several tiles of rows.
TEST_P(CudaAttentionOfManyKeys, MatchesTheCpu) {
  TestRandom random;
  Check(MakeProblem(2, 1100, 10, GetParam(), 0, 0, 1000000, random), DType::kBF16);
  Check(MakeProblem(2, 1077, 16, GetParam(), 333, 401, 1000000, random), DType::kBF16);
  Check(MakeProblem(3, 737, 11, GetParam(), 70, 0, 150, random), DType::kBF16);
}

TEST_P(CudaAttentionOfManyKeys, GivesTheSameBitsAgain) {
  TestRandom random;
  const Problem problem = MakeProblem(2, 901, 10, GetParam(), 40, 0, 200, random);
  ExpectSameBitsAgain(CudaProblem(problem, DType::kBF16), DType::kBF16);
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaAttentionOfManyKeys, testing::Values(64, 128, 256, 200),
                         kNameOfParameter);

TEST(CudaAttention, TakesAnyPositions) {
  TestRandom random;
  for (int64_t width : {64, 128, 256, 20}) {
    Problem problem = MakeProblem(2, 150, 3, width, 70, 0, 1, random);
    for (int64_t i = 0; i < problem.positions.tensor.size(); ++i) {
      Set(problem.positions.tensor, i, static_cast<double>(random.Int(0, 250)));
    }
    Check(problem);
  }
}

TEST(CudaAttention, PastThatNoQuerySeesIsNotRead) {
  TestRandom random;
  for (int64_t width : {20, 128}) {
    Problem problem = MakeProblem(2, 1, 3, width, 40, 0, 10, random);
    FillZero(problem.positions.tensor);
    Poison(problem.past_k.tensor);
    Poison(problem.past_v.tensor);
    Check(problem);
  }
}

TEST(CudaAttention, LargeScoresDoNotOverflow) {
  TestRandom random;
  for (int64_t width : {20, 128}) {
    const Problem problem = MakeProblem(1, 133, 3, width, 3, 0, 1000, random);
    for (int64_t i = 0; i < problem.q.tensor.size(); ++i) {
      Set(problem.q.tensor, i, 100 * Get(problem.q.tensor, i));
    }
    for (DType dtype : kCudaTypes) {
      const Results results = OnHost(SolveOnCuda(CudaProblem(problem, dtype), dtype), problem);
      EXPECT_LT(ErrorOf(results.o, Solve(RoundedProblem(problem, dtype)).o), Tolerance(dtype));
    }
  }
}

TEST(CudaAttention, GradientsOfThePastAreOptional) {
  TestRandom random;
  const Problem problem = CudaProblem(MakeProblem(2, 33, 3, 64, 3, 5, 30, random), DType::kBF16);
  const Results expected = OnHost(SolveOnCuda(problem, DType::kBF16), problem);
  Results results = CudaOutputs(problem, DType::kBF16);
  Forward(problem, results);
  results.dpast_k = OwnedTensor();
  results.dpast_v = OwnedTensor();
  Backward(problem, results);
  EXPECT_TRUE(BitwiseEqual(ToHost(results.dk.tensor).tensor, expected.dk.tensor));
  EXPECT_TRUE(BitwiseEqual(ToHost(results.dv.tensor).tensor, expected.dv.tensor));
}

TEST(CudaAttention, RefusesWrongArguments) {
  TestRandom random;
  const Problem host = MakeProblem(2, 7, 3, 8, 3, 5, 30, random);
  const Problem good = CudaProblem(host, DType::kBF16);
  EXPECT_NO_THROW(Forward(good, CudaOutputs(good, DType::kBF16)));
  Results bad = CudaOutputs(good, DType::kBF16);
  bad.lse = PoisonedCuda(DType::kBF16, bad.lse.tensor.shape);
  EXPECT_THROW(Forward(good, bad), Error) << "the statistics are float32";
  EXPECT_THROW(Forward(good, CudaOutputs(good, DType::kF32)), Error) << "mixed types";
  const Problem wide = CudaProblem(MakeProblem(1, 3, 1, 260, 0, 0, 30, random), DType::kBF16);
  EXPECT_THROW(Forward(wide, CudaOutputs(wide, DType::kBF16)), Error);
  const Problem odd = CudaProblem(MakeProblem(1, 3, 1, 6, 0, 0, 30, random), DType::kF32);
  EXPECT_THROW(Forward(odd, CudaOutputs(odd, DType::kF32)), Error);
  const Results r = CudaOutputs(good, DType::kBF16);
  EXPECT_THROW(AttentionBackward({.q = good.q.tensor,
                                  .k = good.k.tensor,
                                  .v = good.v.tensor,
                                  .past_k = good.past_k.tensor,
                                  .past_v = good.past_v.tensor,
                                  .positions = good.positions.tensor,
                                  .window = good.window,
                                  .o = r.o.tensor,
                                  .lse = r.lse.tensor,
                                  .dout = good.dout.tensor,
                                  .dq = r.dq.tensor,
                                  .dk = r.dk.tensor,
                                  .dv = r.dv.tensor}),
               Error)
      << "no workspace";
}

}  // namespace
}  // namespace attention_test
}  // namespace eyrie
