// CUDA bodies of the mLSTM against the CPU's in float64.
#include "kernels/mlstm/mlstm.h"

#include "tests/cuda/cuda_test_util.h"
#include "tests/kernels/mlstm_problem.h"

namespace eyrie {
namespace {

// Exponential input gates, sigmoid ones, and those without a normaliser. The errors of the smallest
// denominators would outweigh all others: hence the epsilon.
const MlstmOptions kKinds[] = {{.epsilon = 0.1},
                               {.stabilised = false, .epsilon = 0.1},
                               {.stabilised = false, .normalised = false}};

// What forward saves for backward.
constexpr OwnedTensor MlstmProblem::*kSaved[] = {&MlstmProblem::maximum, &MlstmProblem::normaliser};

OwnedMlstmState MapState(const OwnedMlstmState& from,
                         const std::function<OwnedTensor(Tensor)>& map) {
  OwnedMlstmState state;
  state.c = map(from.c.tensor);
  state.n = map(from.n.tensor);
  state.m = map(from.m.tensor);
  return state;
}

// The problem with its inputs and what its forward pass saved taken through `map`, which is told
// what has the activations' type, and poisoned outputs.
template <class Map>
MlstmProblem Mapped(const MlstmProblem& from, const Map& map) {
  MlstmProblem to(from, DType::kF64);
  for (OwnedTensor MlstmProblem::*const tensor :
       {&MlstmProblem::q, &MlstmProblem::k, &MlstmProblem::v, &MlstmProblem::dh, &MlstmProblem::h,
        &MlstmProblem::dq, &MlstmProblem::dk, &MlstmProblem::dv}) {
    to.*tensor = map((from.*tensor).tensor, true);
  }
  for (OwnedTensor MlstmProblem::*const tensor :
       {&MlstmProblem::log_i, &MlstmProblem::log_f, &MlstmProblem::positions,
        &MlstmProblem::maximum, &MlstmProblem::normaliser, &MlstmProblem::dlog_i,
        &MlstmProblem::dlog_f}) {
    to.*tensor = map((from.*tensor).tensor, false);
  }
  for (OwnedMlstmState MlstmProblem::*const state :
       {&MlstmProblem::before, &MlstmProblem::dafter, &MlstmProblem::after,
        &MlstmProblem::dbefore}) {
    to.*state = MapState(from.*state, [&](Tensor tensor) { return map(tensor, false); });
  }
  return to;
}
MlstmProblem RoundedProblem(const MlstmProblem& from, DType dtype) {
  return Mapped(from, [&](const Tensor& tensor, bool activation) {
    if (tensor.dtype == DType::kI32) return Clone(tensor);
    return Rounded(tensor, activation ? dtype : DType::kF32);
  });
}
MlstmProblem CudaProblem(const MlstmProblem& from, DType dtype) {
  MlstmProblem to = Mapped(from, [&](const Tensor& tensor, bool activation) {
    return ToCuda(tensor, activation ? dtype : DType::kF32);
  });
  const int64_t elements = MlstmWorkspace(to.q.tensor, to.v.tensor, to.options);
  EXPECT_GT(elements, 0);
  to.workspace = PoisonedCuda(DType::kF32, {elements});
  return to;
}

// The outputs of forward that backward reads, as the GPU's types hold them.
void RoundWhatIsSaved(MlstmProblem& problem, DType dtype) {
  problem.h = Rounded(problem.h.tensor, dtype);
  for (OwnedTensor MlstmProblem::*const saved : kSaved) {
    problem.*saved = Rounded((problem.*saved).tensor, DType::kF32);
  }
}

// What all gates are closed to may vanish: hence a floor of the norm.
void ExpectClose(const char* name, const Tensor& on_gpu, const Tensor& expected, DType dtype) {
  EXPECT_LT(RelativeError(ToHost(on_gpu).tensor, expected, /*floor=*/1e-4), Tolerance(dtype))
      << name;
}

// Compares the forward pass, then the backward pass given what a forward pass saved, which may have
// the products of its outputs with their gradients.
void ExpectMatchesTheCpu(const MlstmProblem& problem, DType dtype, bool give_products = false) {
  const MlstmSizes& s = problem.sizes;
  SCOPED_TRACE(StrCat(Name(dtype), " B ", s.batch, " T ", s.time, " H ", s.heads, " dk ", s.keys,
                      " dv ", s.values, " state ", problem.with_state, " stabilised ",
                      problem.options.stabilised, " normalised ", problem.options.normalised,
                      " chunk ", problem.options.chunk));
  MlstmProblem expected = RoundedProblem(problem, dtype);
  MlstmProblem one = CudaProblem(problem, dtype), two = CudaProblem(problem, dtype);
  expected.Forward();
  one.Forward();
  two.Forward();
  const auto compare = [&](const auto& wanted) {
    const auto first = one.outputs(), second = two.outputs(), right = expected.outputs();
    for (size_t i = 0; i < right.size(); ++i) {
      if (!wanted(std::string(first[i].first))) continue;
      ExpectClose(first[i].first, first[i].second, right[i].second, dtype);
      EXPECT_TRUE(BitwiseEqual(ToHost(first[i].second).tensor, ToHost(second[i].second).tensor))
          << first[i].first;
    }
  };
  const auto of_backward = [](const std::string& name) { return name[0] == 'd'; };
  compare([&](const std::string& name) { return !of_backward(name); });

  // All go on from the same.
  RoundWhatIsSaved(expected, dtype);
  if (give_products) expected.GiveProducts();
  for (MlstmProblem* gpu : {&one, &two}) {
    if (give_products) gpu->h_dh = ToCuda(expected.h_dh.tensor, DType::kF32);
    Copy(ToCuda(expected.h.tensor, dtype).tensor, gpu->h.tensor);
    for (OwnedTensor MlstmProblem::*const saved : kSaved) {
      Copy(ToCuda((expected.*saved).tensor, DType::kF32).tensor, (gpu->*saved).tensor);
    }
  }
  expected.Backward();
  one.Backward();
  two.Backward();
  compare(of_backward);
}

void ExpectMatchesTheCpu(const MlstmSizes& sizes, const MlstmOptions& options, DType dtype,
                         TestRandom& random) {
  MlstmProblem problem(DType::kF64, sizes, options, random, 2);
  problem.with_state = random.Int(0, 2) > 0;
  if (random.Int(0, 1) == 0) problem.UseOneDocument();
  ExpectMatchesTheCpu(problem, dtype);
}

class CudaMlstmOfTime : public testing::TestWithParam<int64_t> {};
const auto kNameOfTime = [](const auto& time) { return StrCat(time.param); };

TEST_P(CudaMlstmOfTime, MatchesTheCpu) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (MlstmOptions options : kKinds) {
      options.normaliser_gradient = random.Int(0, 1) == 0;
      ExpectMatchesTheCpu({2, GetParam(), 3, 32, 64}, options, dtype, random);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Times, CudaMlstmOfTime, testing::Values(1, 2, 5, 63, 64, 65, 150),
                         kNameOfTime);

using KeysAndValues = std::pair<int64_t, int64_t>;
class CudaMlstmOfWidths : public testing::TestWithParam<KeysAndValues> {};
const auto kNameOfWidths = [](const auto& widths) {
  return StrCat(widths.param.first, "x", widths.param.second);
};

// Widths that are no multiples of 16 are for float32 alone.
class CudaMlstmOfAnyWidths : public CudaMlstmOfWidths {};

TEST_P(CudaMlstmOfAnyWidths, MatchesTheCpu) {
  TestRandom random;
  const auto [keys, values] = GetParam();
  if (keys % 16 == 0) {
    for (const DType dtype : kCudaTypes) {
      ExpectMatchesTheCpu({1, 100, 2, keys, values}, kKinds[random.Int(0, 2)], dtype, random);
    }
  } else {
    ExpectMatchesTheCpu({2, 70, 2, keys, values}, kKinds[0], DType::kF32, random);
    ExpectMatchesTheCpu({2, 1, 2, keys, values}, kKinds[0], DType::kF32, random);
  }
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaMlstmOfAnyWidths,
                         testing::Values(KeysAndValues{16, 16}, KeysAndValues{16, 144},
                                         KeysAndValues{64, 128}, KeysAndValues{80, 48},
                                         KeysAndValues{128, 64}, KeysAndValues{128, 256},
                                         KeysAndValues{256, 512}, KeysAndValues{512, 16},
                                         KeysAndValues{320, 272}, KeysAndValues{5, 7},
                                         KeysAndValues{33, 40}, KeysAndValues{130, 1}),
                         kNameOfWidths);

// In bfloat16, Hopper has a kernel of its own for passes over more than 128 keys, which are one
// block of a cluster or two.
class CudaMlstmWarpgroups : public CudaMlstmOfWidths {};

TEST_P(CudaMlstmWarpgroups, MatchTheCpu) {
  TestRandom random;
  const auto [keys, values] = GetParam();
  for (MlstmOptions options : kKinds) {
    options.chunk = random.Int(0, 1) * 128;
    options.normaliser_gradient = random.Int(0, 1) == 0;
    ExpectMatchesTheCpu({1, random.Int(65, 260), 2, keys, values}, options, DType::kBF16, random);
  }
}
INSTANTIATE_TEST_SUITE_P(Widths, CudaMlstmWarpgroups,
                         testing::Values(KeysAndValues{256, 256}, KeysAndValues{512, 512},
                                         KeysAndValues{256, 512}, KeysAndValues{144, 208},
                                         KeysAndValues{272, 464}, KeysAndValues{512, 64},
                                         KeysAndValues{480, 240}),
                         kNameOfWidths);

// Wider heads than a block has keys of.
TEST_P(CudaMlstmOfWidths, MatchesTheCpu) {
  TestRandom random;
  const auto [keys, values] = GetParam();
  int64_t kind = random.Int(0, 2);
  for (const DType dtype : kCudaTypes) {
    MlstmOptions options = kKinds[kind++ % 3];
    options.chunk = random.Int(0, 1) * 64;
    ExpectMatchesTheCpu({1, random.Int(65, 140), 2, keys, values}, options, dtype, random);
  }
}
INSTANTIATE_TEST_SUITE_P(WideHeads, CudaMlstmOfWidths,
                         testing::Values(KeysAndValues{528, 32}, KeysAndValues{16, 784},
                                         KeysAndValues{768, 768}, KeysAndValues{1024, 1024},
                                         KeysAndValues{640, 1280}, KeysAndValues{1280, 560}),
                         kNameOfWidths);

// In bfloat16, Hopper takes wide heads by products over chunks of 512 tokens, or fewer if the
// caller wants: whole ones, their parts, widths that do not fill the blocks of rows or of columns.
using TimeKeysAndValues = std::tuple<int64_t, int64_t, int64_t>;
class CudaMlstmChunks : public testing::TestWithParam<TimeKeysAndValues> {};
const auto kNameOfSizes = [](const auto& sizes) {
  const auto& [time, keys, values] = sizes.param;
  return StrCat(time, "x", keys, "x", values);
};

TEST_P(CudaMlstmChunks, OfWideHeadsMatchTheCpu) {
  TestRandom random;
  const auto [time, keys, values] = GetParam();
  for (MlstmOptions options : kKinds) {
    options.chunk = random.Int(0, 3) * 64;
    options.normaliser_gradient = random.Int(0, 1) == 0;
    ExpectMatchesTheCpu({random.Int(1, 2), time, 1, keys, values}, options, DType::kBF16, random);
  }
}
INSTANTIATE_TEST_SUITE_P(
    Sizes, CudaMlstmChunks,
    testing::Values(TimeKeysAndValues{256, 528, 272}, TimeKeysAndValues{300, 272, 528},
                    TimeKeysAndValues{30, 528, 16}, TimeKeysAndValues{65, 16, 784},
                    TimeKeysAndValues{517, 768, 64}, TimeKeysAndValues{385, 640, 656},
                    TimeKeysAndValues{575, 144, 1280}),
    kNameOfSizes);

// Several chunks whose tokens are the rows of two clusters, all or in part.
struct LongChunks {
  int64_t time, keys, values, chunk;
};
class CudaMlstmLongChunks : public testing::TestWithParam<LongChunks> {};

TEST_P(CudaMlstmLongChunks, OfWideHeadsMatchTheCpu) {
  TestRandom random;
  const LongChunks& sizes = GetParam();
  MlstmOptions options = kKinds[random.Int(0, 2)];
  options.chunk = sizes.chunk;
  ExpectMatchesTheCpu({random.Int(1, 2), sizes.time, 1, sizes.keys, sizes.values}, options,
                      DType::kBF16, random);
}
INSTANTIATE_TEST_SUITE_P(Sizes, CudaMlstmLongChunks,
                         testing::Values(LongChunks{1090, 528, 48, 0},
                                         LongChunks{1536, 32, 528, 512},
                                         LongChunks{700, 272, 544, 320},
                                         LongChunks{900, 544, 272, 448}),
                         [](const auto& sizes) {
                           const LongChunks& s = sizes.param;
                           return StrCat(s.time, "x", s.keys, "x", s.values, "_", s.chunk);
                         });

// What the forward pass leaves of the memories is what backward would make.
class CudaMlstmMemories : public CudaMlstmOfTime {};

TEST_P(CudaMlstmMemories, ServeTwice) {
  TestRandom random;
  for (const MlstmOptions& options : kKinds) {
    MlstmProblem problem(DType::kF64, {2, GetParam(), 2, 528, 48}, options, random);
    problem.with_state = false;
    MlstmProblem kept = CudaProblem(problem, DType::kBF16);
    MlstmProblem made = CudaProblem(problem, DType::kBF16);
    const int64_t elements = MlstmMemories(kept.q.tensor, kept.v.tensor, options);
    EXPECT_GT(elements, 0);
    kept.memories = PoisonedCuda(DType::kF32, {elements});
    for (MlstmProblem* run : {&kept, &made}) {
      run->Forward();
      Copy(PoisonedCuda(DType::kF32, run->workspace.tensor.shape).tensor, run->workspace.tensor);
      run->Backward();
    }
    for (size_t i = 0; i < kept.outputs().size(); ++i) {
      const auto [name, left] = kept.outputs()[i];
      EXPECT_TRUE(BitwiseEqual(ToHost(left).tensor, ToHost(made.outputs()[i].second).tensor))
          << name;
    }
    kept.with_state = true;
    EXPECT_THROW(kept.Forward(), Error) << "memories of a sequence that a state enters";
  }
}
INSTANTIATE_TEST_SUITE_P(Times, CudaMlstmMemories, testing::Values(30, 700, 1100), kNameOfTime);

TEST(CudaMlstm, ProductsOfOutputsMayBeGiven) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    const MlstmProblem problem(DType::kF64, {2, 150, 3, 32, 64}, kKinds[0], random);
    ExpectMatchesTheCpu(problem, dtype, /*give_products=*/true);
  }
}

// The forget gates' gradient starts again several times, at distances that depend on the size.
class CudaMlstmLong : public testing::TestWithParam<TimeKeysAndValues> {};

TEST_P(CudaMlstmLong, MatchesTheCpu) {
  TestRandom random;
  const auto [time, keys, values] = GetParam();
  const MlstmOptions& options = kKinds[time / 100 % 3];
  for (const DType dtype : kCudaTypes) {
    ExpectMatchesTheCpu({1, time, 2, keys, values}, options, dtype, random);
  }
}
INSTANTIATE_TEST_SUITE_P(Sizes, CudaMlstmLong,
                         testing::Values(TimeKeysAndValues{2100, 256, 512},
                                         TimeKeysAndValues{1100, 128, 176},
                                         TimeKeysAndValues{4200, 16, 32}),
                         kNameOfSizes);

// Chosen by the caller, or (0) because heads are few.
class CudaMlstmOfChunk : public testing::TestWithParam<int64_t> {};

TEST_P(CudaMlstmOfChunk, MatchesTheCpu) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (MlstmOptions options : kKinds) {
      options.chunk = GetParam();
      ExpectMatchesTheCpu({1, random.Int(257, 600), 1, 64, 32}, options, dtype, random);
    }
    if (GetParam() == 0) ExpectMatchesTheCpu({1, 2200, 2, 32, 16}, kKinds[0], dtype, random);
  }
}
INSTANTIATE_TEST_SUITE_P(Chunks, CudaMlstmOfChunk, testing::Values(1, 64, 100, 0),
                         [](const auto& chunk) { return StrCat(chunk.param); });

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
INSTANTIATE_TEST_SUITE_P(Types, CudaMlstmOfType, testing::ValuesIn(kCudaTypes),
                         [](const auto& type) { return std::string(Name(type.param)); });

// One token forgets nearly all, and nothing else reaches the states: what is left of them is as
// exact as they were.
TEST(CudaMlstm, WhatLittleIsKept) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const MlstmOptions& options : {kKinds[1], kKinds[2]}) {
      MlstmProblem problem(DType::kF64, {1, 5, 1, 16, 16}, options, random);
      problem.UseOneDocument();
      for (const Tensor& nothing : {problem.v.tensor, problem.dh.tensor}) {
        std::memset(nothing.raw, 0, nothing.bytes());
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
  for (const DType dtype : kCudaTypes) {
    for (MlstmOptions options : kKinds) {
      options.chunk = random.Int(0, 1) * 64;
      // Wide enough for Hopper's own kernels, and for products over chunks.
      const auto [keys, values] = std::array<std::pair<int64_t, int64_t>, 3>{
          {{48, 80}, {272, 144}, {144, 528}}}[static_cast<size_t>(random.Int(0, 2))];
      MlstmProblem problem(DType::kF64, {2, GetParam(), 2, keys, values}, options, random, 2);
      if (random.Int(0, 1) == 0) problem.UseOneDocument();
      MlstmProblem expected = RoundedProblem(problem, dtype);
      expected.Forward();
      RoundWhatIsSaved(expected, dtype);
      expected.with_state = random.Int(0, 1) == 0;
      const MlstmProblem gpu = CudaProblem(expected, dtype);
      const auto right = Summaries(
          expected, [](const Shape& shape) { return PoisonedTensor(DType::kF64, shape); });
      const auto left =
          Summaries(gpu, [](const Shape& shape) { return PoisonedCuda(DType::kF32, shape); });
      for (size_t i = 0; i < right.size(); ++i) {
        SCOPED_TRACE(StrCat(Name(dtype), " output ", i));
        ExpectClose("summary", left[i].tensor, right[i].tensor, dtype);
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Times, CudaMlstmSummaries, testing::Values(1, 70, 300), kNameOfTime);

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
