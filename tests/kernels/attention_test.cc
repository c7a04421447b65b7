#include "kernels/attention/attention.h"

#include "kernels/attention/attention_blocks.h"
#include "tests/kernels/attention_problem.h"

namespace eyrie {
namespace attention_test {
namespace {

template <size_t N>
int64_t OneOf(const int64_t (&values)[N], TestRandom& random) {
  return values[static_cast<size_t>(random.Int(0, static_cast<int64_t>(N) - 1))];
}

TEST(Attention, MatchesTheDefinition) {
  TestRandom random;
  for (int64_t time : {1, 2, 7, 33, 130}) {
    for (int64_t window : {0, 1, 5, 64}) {
      for (int64_t past : {0, 3, 40}) {
        const int64_t batch = OneOf({1, 3}, random);
        const int64_t heads = OneOf({1, 3, 8}, random);
        const int64_t width = OneOf({4, 8, 20, 64}, random);
        const int64_t length = OneOf({4, 30, 1000}, random);
        SCOPED_TRACE(StrCat("B=", batch, " T=", time, " H=", heads, " dh=", width, " P=", past,
                            " window=", window, " documents of ", length));
        const Problem problem =
            MakeProblem(batch, time, heads, width, past, window, length, random);
        const Results reference = Reference(problem);
        ExpectNear(Solve(problem), reference, 1e-12);
        ExpectNear(Solve(CastProblem(problem, DType::kF32)), reference, 2e-5);
      }
    }
  }
}

TEST(Attention, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (int64_t window : {0, 5}) {
    const Problem p = MakeProblem(2, 9, 3, 4, 6, window, 8, random);
    const Results r = Solve(p);
    const Results scratch = Outputs(p, DType::kF64);
    const auto loss = [&] {
      Forward(p, scratch);
      return Dot(scratch.o.tensor, p.dout.tensor);
    };
    const auto error = [&](const OwnedTensor& input, const OwnedTensor& gradient) {
      return NumericGradientCheck(loss, input.tensor, gradient.tensor, random);
    };
    EXPECT_LT(error(p.q, r.dq), 1e-6);
    EXPECT_LT(error(p.k, r.dk), 1e-6);
    EXPECT_LT(error(p.v, r.dv), 1e-6);
    EXPECT_LT(error(p.past_k, r.dpast_k), 1e-6);
    EXPECT_LT(error(p.past_v, r.dpast_v), 1e-6);
  }
}

// Adds `part` to rows [begin, begin + part.dim(1)) of `whole`.
void AddTime(const OwnedTensor& part, const OwnedTensor& whole, int64_t begin) {
  const OwnedTensor old = TimeSlice(whole.tensor, begin, begin + part.tensor.dim(1));
  for (int64_t i = 0; i < part.tensor.size(); ++i) {
    Set(old.tensor, i, Get(old.tensor, i) + Get(part.tensor, i));
  }
  PasteTime(old.tensor, whole.tensor, begin);
}

TEST(Attention, UnevenChunksWithThePastEqualTheWhole) {
  TestRandom random;
  for (int64_t window : {0, 1, 5, 64}) {
    const int64_t time = 130;
    const Problem whole = MakeProblem(2, time, 3, 8, 0, window, 60, random);
    const Results expected = Solve(whole);
    Results joined = Outputs(whole, DType::kF64);
    for (const OwnedTensor* sum : {&joined.dk, &joined.dv}) FillZero(sum->tensor);
    for (int64_t begin = 0, end; begin < time; begin = end) {
      end = std::min(time, begin + random.Int(1, 50));
      const int64_t past = window > 0 ? std::min(window, begin) : begin;
      const auto cut = [&](const OwnedTensor& from) { return TimeSlice(from.tensor, begin, end); };
      const auto before = [&](const OwnedTensor& from) {
        return TimeSlice(from.tensor, begin - past, begin);
      };
      const Problem chunk{.batch = whole.batch,
                          .time = end - begin,
                          .heads = whole.heads,
                          .width = whole.width,
                          .past = past,
                          .window = window,
                          .q = cut(whole.q),
                          .k = cut(whole.k),
                          .v = cut(whole.v),
                          .past_k = before(whole.k),
                          .past_v = before(whole.v),
                          .positions = cut(whole.positions),
                          .dout = cut(whole.dout)};
      const Results part = Solve(chunk);
      PasteTime(part.o.tensor, joined.o.tensor, begin);
      PasteTime(part.lse.tensor, joined.lse.tensor, begin);
      PasteTime(part.dq.tensor, joined.dq.tensor, begin);
      AddTime(part.dk, joined.dk, begin);
      AddTime(part.dv, joined.dv, begin);
      AddTime(part.dpast_k, joined.dk, begin - past);
      AddTime(part.dpast_v, joined.dv, begin - past);
    }
    SCOPED_TRACE(StrCat("window=", window));
    ExpectNear(joined, expected, 1e-10);
  }
}

TEST(Attention, ManyScoresAreCutIntoBlocks) {
  TestRandom random;
  // More than a million scores in 64 tokens, then in one token: the heads are cut too.
  for (const Problem& problem : {MakeProblem(1, 2300, 8, 4, 0, 0, 100000, random),
                                 MakeProblem(1, 2, 700, 4, 1800, 0, 100000, random)}) {
    Problem all = CastProblem(problem, DType::kF64);
    for (int64_t t = 0; t < all.time; ++t) {
      Set(all.positions.tensor, t, static_cast<double>(all.past + t));
    }
    ExpectNear(Solve(all), Reference(all), 1e-12);
  }
}

TEST(Attention, BlocksCoverAllRowsAndStayBounded) {
  TestRandom random;
  for (int64_t heads : {1, 8, 700}) {
    for (int64_t window : {0, 5, 2048}) {
      const OwnedTensor positions = Documents(2, 3000, 2048, random.Int(1, 20000), random);
      const AttentionExtents extents{.sequences = 2,
                                     .tokens = 3000,
                                     .heads = heads,
                                     .width = 4,
                                     .past = 2048,
                                     .window = window,
                                     .positions = positions.tensor.data<int32_t>()};
      int64_t next = 0;
      for (const QueryBlock& block : CutIntoBlocks(extents)) {
        EXPECT_EQ(block.sequence * 3000 * heads + block.row_begin, next);
        next += block.rows();
        EXPECT_LE(block.scores(), int64_t{1} << 20);
        EXPECT_LE(block.keys(), window > 0 ? window + 64 : 3000 + 2048);
        for (int64_t row = block.row_begin; row < block.row_end; ++row) {
          const int64_t t = row / heads;
          EXPECT_LE(block.key_begin, extents.FirstKey(block.sequence, t));
          EXPECT_GT(block.key_end, t);
        }
      }
      EXPECT_EQ(next, 2 * 3000 * heads);
    }
  }
}

TEST(Attention, ThreadsDoNotChangeABit) {
  TestRandom random;
  for (int64_t batch : {1, 3}) {
    for (DType dtype : {DType::kF32, DType::kF64}) {
      const Problem problem =
          CastProblem(MakeProblem(batch, 333, 3, 20, 40, 64, 100, random), dtype);
      Results one, two;
      WithThreads(1, [&] { one = Solve(problem); });
      WithThreads(2, [&] { two = Solve(problem); });
      ExpectSameBits(one, two);
    }
  }
}

TEST(Attention, PastThatNoQuerySeesIsNotRead) {
  TestRandom random;
  Problem problem = MakeProblem(2, 1, 3, 8, 40, 0, 10, random);
  FillZero(problem.positions.tensor);
  Poison(problem.past_k.tensor);
  Poison(problem.past_v.tensor);
  const Results results = Solve(problem);
  ExpectNear(results, Reference(problem), 1e-12);
  EXPECT_EQ(Dot(results.dpast_k.tensor, results.dpast_k.tensor), 0.0);
  EXPECT_EQ(Dot(results.dpast_v.tensor, results.dpast_v.tensor), 0.0);
}

TEST(Attention, LargeScoresDoNotOverflow) {
  TestRandom random;
  const Problem problem = MakeProblem(1, 33, 3, 8, 3, 0, 1000, random);
  for (int64_t i = 0; i < problem.q.tensor.size(); ++i) {
    Set(problem.q.tensor, i, 100 * Get(problem.q.tensor, i));
  }
  const Results narrow = Solve(CastProblem(problem, DType::kF32));
  EXPECT_LT(ErrorOf(narrow.o, Reference(problem).o), 1e-3);
}

TEST(Attention, GradientsOfThePastAreOptional) {
  TestRandom random;
  const Problem problem = MakeProblem(2, 33, 3, 8, 3, 5, 30, random);
  const Results expected = Solve(problem);
  Results results = Outputs(problem, DType::kF64);
  Forward(problem, results);
  results.dpast_k = OwnedTensor();
  results.dpast_v = OwnedTensor();
  Backward(problem, results);
  EXPECT_TRUE(BitwiseEqual(results.dk.tensor, expected.dk.tensor));
  EXPECT_TRUE(BitwiseEqual(results.dv.tensor, expected.dv.tensor));
}

TEST(Attention, RefusesWrongArguments) {
  TestRandom random;
  const Problem good = MakeProblem(2, 7, 3, 8, 3, 5, 30, random);
  const Results results = Outputs(good, DType::kF64);
  EXPECT_NO_THROW(Forward(good, results));
  const auto with = [&](Shape shape, OwnedTensor Problem::*member) {
    Problem bad = CastProblem(good, DType::kF64);
    bad.*member = OwnedTensor(DType::kF64, shape);
    return bad;
  };
  EXPECT_THROW(Forward(with({2, 7, 3}, &Problem::q), results), Error);
  EXPECT_THROW(Forward(with({2, 6, 8}, &Problem::k), results), Error);
  EXPECT_THROW(Forward(with({2, 7, 4}, &Problem::v), results), Error);
  EXPECT_THROW(Forward(with({2, 4, 8}, &Problem::past_v), results), Error);
  EXPECT_THROW(Forward(with({2, 7}, &Problem::positions), results), Error) << "not int32";
  EXPECT_THROW(Forward(CastProblem(good, DType::kF32), results), Error) << "mixed types";
  EXPECT_THROW(Backward(with({2, 7, 3, 4}, &Problem::dout), results), Error);
}

}  // namespace
}  // namespace attention_test
}  // namespace eyrie
