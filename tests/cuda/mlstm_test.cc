// CUDA bodies of the mLSTM against the CPU's in float64.
#include "tests/cuda/mlstm_compare.h"

namespace eyrie {
namespace {

using TypeAndTime = std::tuple<DType, int64_t>;
class CudaMlstmOfTime : public testing::TestWithParam<TypeAndTime> {};

TEST_P(CudaMlstmOfTime, MatchesTheCpu) {
  TestRandom random;
  const auto [dtype, time] = GetParam();
  for (MlstmOptions options : kKinds) {
    options.normaliser_gradient = random.Int(0, 1) == 0;
    ExpectMatchesTheCpu({2, time, 3, 32, 64}, options, dtype, random);
  }
}
INSTANTIATE_TEST_SUITE_P(Times, CudaMlstmOfTime,
                         InBothTypes(testing::Values(1, 2, 5, 63, 64, 65, 150)), kNameOfParameter);

class CudaMlstmOfAnyWidths : public testing::TestWithParam<TypeAndWidths> {};

TEST_P(CudaMlstmOfAnyWidths, MatchesTheCpu) {
  TestRandom random;
  const auto& [dtype, widths] = GetParam();
  const auto [keys, values] = widths;
  ExpectMatchesTheCpu({1, 100, 2, keys, values}, kKinds[random.Int(0, 2)], dtype, random);
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaMlstmOfAnyWidths,
                         InBothTypes(testing::Values(
                             KeysAndValues{16, 16}, KeysAndValues{16, 144}, KeysAndValues{64, 128},
                             KeysAndValues{80, 48}, KeysAndValues{128, 64}, KeysAndValues{128, 256},
                             KeysAndValues{256, 512}, KeysAndValues{512, 16},
                             KeysAndValues{320, 272})),
                         kNameOfParameter);

// Widths that are no multiples of 16 are for float32 alone.
class CudaMlstmOfOddWidths : public testing::TestWithParam<KeysAndValues> {};

TEST_P(CudaMlstmOfOddWidths, MatchesTheCpu) {
  TestRandom random;
  const auto [keys, values] = GetParam();
  ExpectMatchesTheCpu({2, 70, 2, keys, values}, kKinds[0], DType::kF32, random);
  ExpectMatchesTheCpu({2, 1, 2, keys, values}, kKinds[0], DType::kF32, random);
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaMlstmOfOddWidths,
                         testing::Values(KeysAndValues{5, 7}, KeysAndValues{33, 40},
                                         KeysAndValues{130, 1}),
                         kNameOfParameter);

TEST(CudaMlstm, ProductsOfOutputsMayBeGiven) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    const MlstmProblem problem(DType::kF64, {2, 150, 3, 32, 64}, kKinds[0], random);
    ExpectMatchesTheCpu(problem, dtype, /*give_products=*/true);
  }
}

// The forget gates' gradient starts again several times, at distances that depend on the size.
class CudaMlstmLong : public testing::TestWithParam<std::tuple<DType, TimeKeysAndValues>> {};

TEST_P(CudaMlstmLong, MatchesTheCpu) {
  TestRandom random;
  const auto& [dtype, sizes] = GetParam();
  const auto [time, keys, values] = sizes;
  ExpectMatchesTheCpu({1, time, 2, keys, values}, kKinds[time / 100 % 3], dtype, random);
}
INSTANTIATE_TEST_SUITE_P(Sizes, CudaMlstmLong,
                         InBothTypes(testing::Values(TimeKeysAndValues{2100, 256, 512},
                                                     TimeKeysAndValues{1100, 128, 176},
                                                     TimeKeysAndValues{4200, 16, 32})),
                         kNameOfParameter);

// Chosen by the caller, or (0) because heads are few.
class CudaMlstmOfChunk : public testing::TestWithParam<std::tuple<DType, int64_t>> {};

TEST_P(CudaMlstmOfChunk, MatchesTheCpu) {
  TestRandom random;
  const auto [dtype, chunk] = GetParam();
  for (MlstmOptions options : kKinds) {
    options.chunk = chunk;
    ExpectMatchesTheCpu({1, random.Int(257, 600), 1, 64, 32}, options, dtype, random);
  }
  if (chunk == 0) ExpectMatchesTheCpu({1, 2200, 2, 32, 16}, kKinds[0], dtype, random);
}
INSTANTIATE_TEST_SUITE_P(Chunks, CudaMlstmOfChunk, InBothTypes(testing::Values(1, 64, 100, 0)),
                         kNameOfParameter);

// More heads in all than a grid of blocks may be high: the last sequences as they are alone.
TEST(CudaMlstm, ManyShortSequences) {
  constexpr int64_t kBatch = 8200, kTokens = 3, kHeads = 8, kWidth = 16, kLast = 5;
  TestRandom random;
  const auto draw = [&](Shape shape, DType dtype) {
    return ToCuda(RandomTensor(DType::kF32, shape, random).tensor, dtype);
  };
  const Shape rows{kBatch, kTokens, kHeads, kWidth}, gates{kBatch, kTokens, kHeads};
  const OwnedTensor q = draw(rows, DType::kBF16), k = draw(rows, DType::kBF16);
  const OwnedTensor v = draw(rows, DType::kBF16), dh = draw(rows, DType::kBF16);
  const OwnedTensor log_i = draw(gates, DType::kF32), log_f = draw(gates, DType::kF32);
  const OwnedTensor dc = draw({kBatch, kHeads, kWidth, kWidth}, DType::kF32);
  const OwnedTensor dn = draw({kBatch, kHeads, kWidth}, DType::kF32);
  const OwnedTensor positions = ToCuda(RandomPositions(kBatch, kTokens, random, true).tensor);
  // What a call with the last `batch` sequences gives for the last kLast.
  const auto run = [&](int64_t batch) {
    const auto last = [&](const OwnedTensor& all) {
      return all.tensor.Rows(kBatch - batch, kBatch);
    };
    const auto out = [&](DType dtype, Shape shape) { return PoisonedCuda(dtype, shape); };
    const Shape own{batch, kTokens, kHeads, kWidth}, own_gates{batch, kTokens, kHeads};
    std::vector<OwnedTensor> results;
    for (int i = 0; i < 4; ++i) results.push_back(out(DType::kBF16, own));
    for (int i = 0; i < 4; ++i) results.push_back(out(DType::kF32, own_gates));
    const auto result = [&](int i) { return results[static_cast<size_t>(i)].tensor; };
    const OwnedTensor c = out(DType::kF32, {batch, kHeads, kWidth, kWidth});
    const OwnedTensor n = out(DType::kF32, {batch, kHeads, kWidth});
    const OwnedTensor m = out(DType::kF32, {batch, kHeads});
    const OwnedTensor workspace =
        out(DType::kF32, {MlstmWorkspace(last(q), last(v), MlstmOptions())});
    MlstmForward({.q = last(q),
                  .k = last(k),
                  .v = last(v),
                  .log_i = last(log_i),
                  .log_f = last(log_f),
                  .positions = last(positions),
                  .h = result(0),
                  .maximum = result(4),
                  .normaliser = result(5),
                  .after = {.c = c.tensor, .n = n.tensor, .m = m.tensor},
                  .workspace = workspace.tensor});
    MlstmBackward({.q = last(q),
                   .k = last(k),
                   .v = last(v),
                   .log_i = last(log_i),
                   .log_f = last(log_f),
                   .positions = last(positions),
                   .h = result(0),
                   .maximum = result(4),
                   .normaliser = result(5),
                   .dh = last(dh),
                   .dafter = {.c = last(dc), .n = last(dn)},
                   .after_m = m.tensor,
                   .dq = result(1),
                   .dk = result(2),
                   .dv = result(3),
                   .dlog_i = result(6),
                   .dlog_f = result(7),
                   .workspace = workspace.tensor});
    std::vector<OwnedTensor> on_host;
    for (const OwnedTensor& one : results) {
      on_host.push_back(ToHost(one.tensor.Rows(batch - kLast, batch)));
    }
    return on_host;
  };
  const std::vector<OwnedTensor> together = run(kBatch), alone = run(kLast);
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_TRUE(BitwiseEqual(together[i].tensor, alone[i].tensor)) << i;
  }
}

class CudaMlstmOfType : public testing::TestWithParam<DType> {};

TEST_P(CudaMlstmOfType, GatesWideOpenAndShut) {
  TestRandom random;
  for (const MlstmOptions& options : kKinds) {
    MlstmProblem problem(DType::kF64, {2, 200, 2, 32, 48}, options, random);
    for (int64_t i = 0; i < problem.log_i.tensor.size(); ++i) {
      const double y = random.Int(0, 1) == 0 ? 50 : -50;
      Set(problem.log_i.tensor, i, options.stabilised ? y : LogSigmoid(y));
      Set(problem.log_f.tensor, i, LogSigmoid(random.Int(0, 2) > 0 ? 50 : -50));
    }
    ExpectMatchesTheCpu(problem, GetParam());
  }
}
INSTANTIATE_TEST_SUITE_P(Types, CudaMlstmOfType, testing::ValuesIn(kCudaTypes), kNameOfParameter);

// One token forgets nearly all, and nothing else reaches the states: what is left of them is as
// exact as they were.
TEST(CudaMlstm, WhatLittleIsKept) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const MlstmOptions& options : {kKinds[1], kKinds[2]}) {
      MlstmProblem problem(DType::kF64, {1, 5, 1, 16, 16}, options, random);
      problem.UseOneDocument();
      for (const Tensor& nothing : {problem.v.tensor, problem.dh.tensor}) {
        FillZero(nothing);
      }
      for (int64_t t = 0; t < 5; ++t) Set(problem.log_f.tensor, t, t == 2 ? -7 : -1e-3);
      ExpectMatchesTheCpu(problem, dtype);
    }
  }
}

// As when text is generated: the state stays where it is.
TEST(CudaMlstm, SingleTokensInPlaceEqualOnePass) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const MlstmOptions& options : kKinds) {
      const MlstmSizes sizes{2, 9, 3, 48, 144};
      const MlstmProblem problem(DType::kF64, sizes, options, random);
      const MlstmProblem expected = RoundedProblem(problem, dtype);
      expected.Forward();
      const OwnedMlstmState state =
          MapState(problem.before, [](Tensor tensor) { return ToCuda(tensor, DType::kF32); });
      for (int64_t t = 0; t < sizes.time; ++t) {
        const MlstmProblem token = CudaProblem(MlstmProblem(problem, t, t + 1), dtype);
        MlstmForward({.q = token.q.tensor,
                      .k = token.k.tensor,
                      .v = token.v.tensor,
                      .log_i = token.log_i.tensor,
                      .log_f = token.log_f.tensor,
                      .positions = token.positions.tensor,
                      .before = state.whole(),
                      .h = token.h.tensor,
                      .maximum = token.maximum.tensor,
                      .normaliser = token.normaliser.tensor,
                      .after = state.whole(),
                      .options = options,
                      .workspace = token.workspace.tensor});
        const OwnedTensor h = TimeSlice(expected.h.tensor, t, t + 1);
        ExpectClose("h", token.h.tensor, h.tensor, dtype);
      }
      ExpectClose("c", state.c.tensor, expected.after.c.tensor, dtype);
      ExpectClose("n", state.n.tensor, expected.after.n.tensor, dtype);
      ExpectClose("m", state.m.tensor, expected.after.m.tensor, dtype);
    }
  }
}

// Both summaries of a problem whose forward pass is done, in `poisoned` outputs of given shapes.
std::vector<OwnedTensor> Summaries(const MlstmProblem& p,
                                   const std::function<OwnedTensor(Shape)>& poisoned) {
  const Shape heads = p.before.m.tensor.shape, c = p.before.c.tensor.shape;
  const Shape n = p.before.n.tensor.shape;
  std::vector<OwnedTensor> out;
  for (const Shape& shape : {heads, c, n, heads, heads, c, n}) out.push_back(poisoned(shape));
  MlstmSummary({.k = p.k.tensor,
                .v = p.v.tensor,
                .log_i = p.log_i.tensor,
                .log_f = p.log_f.tensor,
                .positions = p.positions.tensor,
                .log_decay = out[0].tensor,
                .increment = {.c = out[1].tensor, .n = out[2].tensor, .m = out[3].tensor},
                .options = p.options,
                .workspace = p.workspace.tensor});
  MlstmGradSummary({.q = p.q.tensor,
                    .log_f = p.log_f.tensor,
                    .positions = p.positions.tensor,
                    .before_m = p.with_state ? p.before.m.tensor : Tensor{},
                    .after_m = p.after.m.tensor,
                    .h = p.h.tensor,
                    .maximum = p.maximum.tensor,
                    .normaliser = p.normaliser.tensor,
                    .dh = p.dh.tensor,
                    .decay = out[4].tensor,
                    .increment_c = out[5].tensor,
                    .increment_n = out[6].tensor,
                    .options = p.options,
                    .workspace = p.workspace.tensor});
  return out;
}

class CudaMlstmSummaries : public CudaMlstmOfTime {};

TEST_P(CudaMlstmSummaries, MatchTheCpu) {
  TestRandom random;
  const auto [dtype, time] = GetParam();
  for (MlstmOptions options : kKinds) {
    options.chunk = random.Int(0, 1) * 64;
    // Wide enough for Hopper's own kernels, and for products over chunks.
    const auto [keys, values] = std::array<std::pair<int64_t, int64_t>, 3>{
        {{48, 80}, {272, 144}, {144, 528}}}[static_cast<size_t>(random.Int(0, 2))];
    MlstmProblem problem(DType::kF64, {2, time, 2, keys, values}, options, random, 2);
    if (random.Int(0, 1) == 0) problem.UseOneDocument();
    MlstmProblem expected = RoundedProblem(problem, dtype);
    expected.Forward();
    RoundWhatIsSaved(expected, dtype);
    expected.with_state = random.Int(0, 1) == 0;
    const MlstmProblem gpu = CudaProblem(expected, dtype);
    const auto right =
        Summaries(expected, [](const Shape& shape) { return PoisonedTensor(DType::kF64, shape); });
    const auto left =
        Summaries(gpu, [](const Shape& shape) { return PoisonedCuda(DType::kF32, shape); });
    for (size_t i = 0; i < right.size(); ++i) {
      SCOPED_TRACE(StrCat(Name(dtype), " output ", i));
      ExpectClose("summary", left[i].tensor, right[i].tensor, dtype);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Times, CudaMlstmSummaries, InBothTypes(testing::Values(1, 70, 300)),
                         kNameOfParameter);

TEST(CudaMlstm, RefusesWhatItCannotCompute) {
  TestRandom random;
  const auto forward = [&](DType dtype, int64_t keys, int64_t values, bool with_workspace) {
    MlstmProblem p =
        CudaProblem(MlstmProblem(DType::kF64, {1, 3, 1, keys, values}, kKinds[0], random), dtype);
    if (!with_workspace) p.workspace = OwnedTensor();
    p.Forward();
  };
  forward(DType::kBF16, 16, 32, true);
  EXPECT_THROW(forward(DType::kBF16, 16, 32, false), Error);
  EXPECT_THROW(forward(DType::kBF16, 24, 32, true), Error);
  EXPECT_THROW(forward(DType::kBF16, 16, 40, true), Error);
  EXPECT_THROW(forward(DType::kBF16, 1296, 32, true), Error);
  EXPECT_THROW(forward(DType::kF32, 1281, 32, true), Error);
  EXPECT_THROW(forward(DType::kF32, 32, 1281, true), Error);
}

}  // namespace
}  // namespace eyrie
