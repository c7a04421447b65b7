// CUDA bodies of RMSNorm against the CPU's in float64.
#include "kernels/norm/rms_norm.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

constexpr double kEpsilon = 1e-2;  // large enough for its place to matter

// N rows of width D on one device, and what a forward and a backward pass make of them.
struct Case {
  OwnedTensor x, weight, dy, dresidual, y, rstd, dx, dweight, workspace;

  void Run(bool with_residual) {
    RmsNormForward({.x = x.tensor,
                    .weight = weight.tensor,
                    .epsilon = kEpsilon,
                    .y = y.tensor,
                    .rstd = rstd.tensor});
    RmsNormBackward({.x = x.tensor,
                     .weight = weight.tensor,
                     .rstd = rstd.tensor,
                     .dy = dy.tensor,
                     .dresidual = with_residual ? dresidual.tensor : Tensor{},
                     .dx = dx.tensor,
                     .dweight = dweight.tensor,
                     .workspace = workspace.tensor});
  }
};

class CudaRmsNorm : public testing::TestWithParam<DType> {
 protected:
  // Both passes, twice on the GPU and once on the CPU.
  void Compare(int64_t rows, int64_t width, bool with_residual) {
    SCOPED_TRACE(StrCat("N ", rows, " D ", width, " residual ", with_residual));
    const DType dtype = GetParam();
    const Shape shape{rows, width};
    const auto random = [&](Shape s, double scale) {
      return RandomTensor(DType::kF32, s, random_, scale);
    };
    const OwnedTensor x = random(shape, 1), dy = random(shape, 1);
    const OwnedTensor dresidual = random(shape, 1), weight = random({width}, 0.3);
    const OwnedTensor dweight = random({width}, 1);
    const auto there = [&] {
      Case c{.x = ToCuda(x.tensor, dtype),
             .weight = ToCuda(weight.tensor, dtype),
             .dy = ToCuda(dy.tensor, dtype),
             .dresidual = ToCuda(dresidual.tensor, dtype),
             .y = PoisonedCuda(dtype, shape),
             .rstd = PoisonedCuda(DType::kF32, {rows}),
             .dx = PoisonedCuda(dtype, shape),
             .dweight = ToCuda(dweight.tensor)};
      c.workspace = PoisonedCuda(DType::kF32, {RmsNormBackwardWorkspace(c.x.tensor)});
      c.Run(with_residual);
      return c;
    };
    Case here{.x = Rounded(x.tensor, dtype),
              .weight = Rounded(weight.tensor, dtype),
              .dy = Rounded(dy.tensor, dtype),
              .dresidual = Rounded(dresidual.tensor, dtype),
              .y = PoisonedTensor(DType::kF64, shape),
              .rstd = PoisonedTensor(DType::kF64, {rows}),
              .dx = PoisonedTensor(DType::kF64, shape),
              .dweight = Cast(dweight.tensor, DType::kF64)};
    here.Run(with_residual);

    const Case one = there(), two = there();
    const double tolerance = Tolerance(dtype);
    const auto compare = [&](const OwnedTensor Case::*which, double bound) {
      const OwnedTensor result = ToHost((one.*which).tensor);
      // Gradients may cancel: their errors are measured by the size of what they are made of.
      const double floor = std::sqrt(static_cast<double>(result.tensor.size()));
      EXPECT_LT(RelativeError(result.tensor, (here.*which).tensor, floor), bound);
      EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost((two.*which).tensor).tensor));
    };
    compare(&Case::y, tolerance);
    compare(&Case::rstd, 1e-5);
    compare(&Case::dx, tolerance);
    compare(&Case::dweight, 1e-5);
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
  const DType dtype = GetParam();
  const auto random = [&](Shape s) { return ToCuda(RandomTensor(dtype, s, random_).tensor); };
  const OwnedTensor x = random({33, 136}), dy = random({33, 136}), d = random({33, 136});
  const OwnedTensor weight = random({136}),
                    rstd = ToCuda(RandomTensor(DType::kF32, {33}, random_).tensor);
  const OwnedTensor dx = PoisonedCuda(dtype, {33, 136}), dweight = ZeroCuda(DType::kF32, {136});
  const OwnedTensor workspace = PoisonedCuda(DType::kF32, {RmsNormBackwardWorkspace(x.tensor)});
  for (const OwnedTensor* out : {&dx, &d}) {
    RmsNormBackward({.x = x.tensor,
                     .weight = weight.tensor,
                     .rstd = rstd.tensor,
                     .dy = dy.tensor,
                     .dresidual = d.tensor,
                     .dx = out->tensor,
                     .dweight = dweight.tensor,
                     .workspace = workspace.tensor});
  }
  EXPECT_TRUE(BitwiseEqual(ToHost(dx.tensor).tensor, ToHost(d.tensor).tensor));
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
