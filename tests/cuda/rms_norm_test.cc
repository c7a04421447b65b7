// CUDA bodies of RMSNorm against the CPU's in float64.
#include "tests/cuda/norm_compare.h"

namespace eyrie {
namespace {

class CudaRmsNorm : public testing::TestWithParam<DType> {
 protected:
  void Compare(int64_t rows, int64_t width, bool with_residual) {
    CompareNorm<RmsNormProblem>(GetParam(), {rows, width}, with_residual, random_);
  }

  TestRandom random_;
};

TEST_P(CudaRmsNorm, MatchesTheCpu) {
  for (bool with_residual : {false, true}) {
    for (int64_t width : {1, 5, 33, 64, 130, 256, 2048, 2056, 4096, 5120}) {
      for (int64_t rows : {1, 3, 37}) Compare(rows, width, with_residual);
    }
  }
}

TEST_P(CudaRmsNorm, WideRows) {
  for (bool with_residual : {false, true}) {
    for (int64_t width : {8192, 12345, 16384}) Compare(5, width, with_residual);
  }
}

// More rows than blocks.
TEST_P(CudaRmsNorm, ManyRows) {
  Compare(2501, 72, true);
  Compare(9001, 8, false);
  Compare(601, 1000, true);
}

TEST_P(CudaRmsNorm, InputGradientMayReplaceTheResidual) {
  ReplaceTheResidual<RmsNormProblem>(GetParam(), {33, 136}, random_);
}

TEST_P(CudaRmsNorm, WithoutAWeightIsThatOfZeros) {
  const DType dtype = GetParam();
  for (const int64_t width : {33, 136, 5120}) {
    const Shape shape{37, width};
    const auto random = [&] { return ToCuda(RandomTensor(dtype, shape, random_).tensor); };
    const OwnedTensor x = random(), dy = random(), d = random();
    const OwnedTensor zeros = ZeroCuda(dtype, {width}), dweight = ZeroCuda(DType::kF32, {width});
    const OwnedTensor workspace = PoisonedCuda(DType::kF32, {RmsNormBackwardWorkspace(x.tensor)});
    std::vector<OwnedTensor> results;
    for (const bool weighted : {true, false}) {
      const auto given = [&](const OwnedTensor& tensor) {
        return weighted ? tensor.tensor : Tensor{};
      };
      const OwnedTensor y = PoisonedCuda(dtype, shape), dx = PoisonedCuda(dtype, shape);
      const OwnedTensor rstd = PoisonedCuda(DType::kF32, {37});
      RmsNormForward({.x = x.tensor, .weight = given(zeros), .y = y.tensor, .rstd = rstd.tensor});
      RmsNormBackward({.x = x.tensor,
                       .weight = given(zeros),
                       .rstd = rstd.tensor,
                       .dy = dy.tensor,
                       .dresidual = d.tensor,
                       .dx = dx.tensor,
                       .dweight = given(dweight),
                       .workspace = given(workspace)});
      results.push_back(ToHost(y.tensor));
      results.push_back(ToHost(dx.tensor));
    }
    EXPECT_TRUE(BitwiseEqual(results[0].tensor, results[2].tensor));
    EXPECT_TRUE(BitwiseEqual(results[1].tensor, results[3].tensor));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaRmsNorm, testing::ValuesIn(kCudaTypes));

TEST(CudaRmsNormArguments, AreRefused) {
  const auto forward = [](DType weight_type, DType rstd_type, int64_t width) {
    const OwnedTensor x = ZeroCuda(DType::kBF16, {3, width}),
                      y = ZeroCuda(DType::kBF16, {3, width});
    const OwnedTensor weight = ZeroCuda(weight_type, {width}), rstd = ZeroCuda(rstd_type, {3});
    RmsNormForward({.x = x.tensor, .weight = weight.tensor, .y = y.tensor, .rstd = rstd.tensor});
  };
  EXPECT_NO_THROW(forward(DType::kBF16, DType::kF32, 8));
  EXPECT_THROW(forward(DType::kF32, DType::kF32, 8), Error);
  EXPECT_THROW(forward(DType::kBF16, DType::kBF16, 8), Error);
  EXPECT_THROW(forward(DType::kBF16, DType::kF32, 16385), Error);
}

}  // namespace
}  // namespace eyrie
