// The mLSTM's CUDA bodies of wide heads, Hopper's own among them, against the CPU's in float64.
#include "tests/cuda/mlstm_compare.h"

namespace eyrie {
namespace {

// In bfloat16, Hopper has a kernel of its own for passes over more than 128 keys, which are one
// block of a cluster or two.
class CudaMlstmWarpgroups : public testing::TestWithParam<KeysAndValues> {};

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
                         kNameOfParameter);

// Wider heads than a block has keys of.
class CudaMlstmOfWidths : public testing::TestWithParam<TypeAndWidths> {};

TEST_P(CudaMlstmOfWidths, MatchesTheCpu) {
  TestRandom random;
  const auto& [dtype, widths] = GetParam();
  const auto [keys, values] = widths;
  MlstmOptions options = kKinds[random.Int(0, 2)];
  options.chunk = random.Int(0, 1) * 64;
  ExpectMatchesTheCpu({1, random.Int(65, 140), 2, keys, values}, options, dtype, random);
}
INSTANTIATE_TEST_SUITE_P(
    WideHeads, CudaMlstmOfWidths,
    InBothTypes(testing::Values(KeysAndValues{528, 32}, KeysAndValues{16, 784},
                                KeysAndValues{768, 768}, KeysAndValues{1024, 1024},
                                KeysAndValues{640, 1280}, KeysAndValues{1280, 560})),
    kNameOfParameter);

// In bfloat16, Hopper takes wide heads by products over chunks of 512 tokens, or fewer if the
// caller wants: whole ones, their parts, widths that do not fill the blocks of rows or of columns.
class CudaMlstmChunks : public testing::TestWithParam<TimeKeysAndValues> {};

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
    kNameOfParameter);

// Several chunks whose tokens are the rows of two clusters, all or in part.
struct LongChunks {
  int64_t time, keys, values, chunk;
  int kind;
};
class CudaMlstmLongChunks : public testing::TestWithParam<LongChunks> {};

TEST_P(CudaMlstmLongChunks, OfWideHeadsMatchTheCpu) {
  TestRandom random;
  const LongChunks& sizes = GetParam();
  MlstmOptions options = kKinds[sizes.kind];
  options.chunk = sizes.chunk;
  ExpectMatchesTheCpu({random.Int(1, 2), sizes.time, 1, sizes.keys, sizes.values}, options,
                      DType::kBF16, random);
}
INSTANTIATE_TEST_SUITE_P(Sizes, CudaMlstmLongChunks,
                         testing::Values(LongChunks{1090, 528, 48, 0, 0},
                                         LongChunks{1536, 32, 528, 512, 1},
                                         LongChunks{700, 272, 544, 320, 2},
                                         LongChunks{900, 544, 272, 448, 0}),
                         [](const auto& sizes) {
                           const LongChunks& s = sizes.param;
                           return StrCat(s.time, "x", s.keys, "x", s.values, "_", s.chunk);
                         });

// What the forward pass leaves of the memories is what backward would make.
class CudaMlstmMemories : public testing::TestWithParam<int64_t> {};

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
INSTANTIATE_TEST_SUITE_P(Times, CudaMlstmMemories, testing::Values(30, 700, 1100),
                         kNameOfParameter);

}  // namespace
}  // namespace eyrie
