// CUDA bodies of LayerNorm against the CPU's in float64.
#include "kernels/norm/layer_norm.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

constexpr double kEpsilon = 1e-2;  // large enough for its place to matter

// N rows of G groups of D on one device, and what a forward and a backward pass make of them.
struct Case {
  OwnedTensor x, weight, dy, dresidual, y, mean, rstd, dx, dweight, workspace;

  LayerNormBackwardArgs backward(bool with_residual) const {
    return {.x = x.tensor,
            .weight = weight.tensor,
            .mean = mean.tensor,
            .rstd = rstd.tensor,
            .dy = dy.tensor,
            .dresidual = with_residual ? dresidual.tensor : Tensor{},
            .dx = dx.tensor,
            .dweight = dweight.tensor,
            .workspace = workspace.tensor};
  }
  void Run(bool with_residual) const {
    LayerNormForward({.x = x.tensor,
                      .weight = weight.tensor,
                      .epsilon = kEpsilon,
                      .y = y.tensor,
                      .mean = mean.tensor,
                      .rstd = rstd.tensor});
    LayerNormBackward(backward(with_residual));
  }
};

class CudaLayerNorm : public testing::TestWithParam<DType> {
 protected:
  // Both passes, twice on the GPU and once on the CPU.
  void Compare(int64_t rows, int64_t groups, int64_t width, bool with_residual) {
    SCOPED_TRACE(StrCat("N ", rows, " G ", groups, " D ", width, " residual ", with_residual));
    const DType dtype = GetParam();
    const Shape shape{rows, groups, width}, row{groups, width}, statistics{rows, groups};
    const auto random = [&](Shape s, double scale) {
      return RandomTensor(DType::kF32, s, random_, scale);
    };
    const OwnedTensor x = random(shape, 1), dy = random(shape, 1), dresidual = random(shape, 1);
    const OwnedTensor weight = random(row, 0.3), dweight = random(row, 1);
    const auto there = [&] {
      Case c{.x = ToCuda(x.tensor, dtype),
             .weight = ToCuda(weight.tensor, dtype),
             .dy = ToCuda(dy.tensor, dtype),
             .dresidual = ToCuda(dresidual.tensor, dtype),
             .y = PoisonedCuda(dtype, shape),
             .mean = PoisonedCuda(DType::kF32, statistics),
             .rstd = PoisonedCuda(DType::kF32, statistics),
             .dx = PoisonedCuda(dtype, shape),
             .dweight = ToCuda(dweight.tensor)};
      c.workspace = PoisonedCuda(DType::kF32, {LayerNormBackwardWorkspace(c.x.tensor)});
      c.Run(with_residual);
      return c;
    };
    const Case here{.x = Rounded(x.tensor, dtype),
                    .weight = Rounded(weight.tensor, dtype),
                    .dy = Rounded(dy.tensor, dtype),
                    .dresidual = Rounded(dresidual.tensor, dtype),
                    .y = PoisonedTensor(DType::kF64, shape),
                    .mean = PoisonedTensor(DType::kF64, statistics),
                    .rstd = PoisonedTensor(DType::kF64, statistics),
                    .dx = PoisonedTensor(DType::kF64, shape),
                    .dweight = Cast(dweight.tensor, DType::kF64)};
    here.Run(with_residual);

    const Case one = there(), two = there();
    const auto compare = [&](const OwnedTensor Case::*which, double bound) {
      const OwnedTensor result = ToHost((one.*which).tensor);
      // Gradients may cancel: their errors are measured by the size of what they are made of.
      const double floor = std::sqrt(static_cast<double>(result.tensor.size()));
      EXPECT_LT(RelativeError(result.tensor, (here.*which).tensor, floor), bound);
      EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost((two.*which).tensor).tensor));
    };
    compare(&Case::y, Tolerance(dtype));
    compare(&Case::mean, 1e-5);
    compare(&Case::rstd, 1e-5);
    compare(&Case::dx, Tolerance(dtype));
    compare(&Case::dweight, 1e-5);
  }

  TestRandom random_;
};

// Each way to divide a group among threads, its limits and what is one beyond them.
TEST_P(CudaLayerNorm, MatchesTheCpu) {
  for (int64_t width : {1, 5, 32, 33, 64, 65, 72, 128, 130, 136, 256, 264, 512, 520, 2048, 2056}) {
    for (int64_t groups : {1, 3, 4}) {
      for (int64_t rows : {1, 37}) Compare(rows, groups, width, groups != 3);
    }
  }
}

TEST_P(CudaLayerNorm, WideGroups) {
  for (int64_t width : {4096, 8192, 12345, 16384}) {
    for (bool with_residual : {false, true}) Compare(5, 1, width, with_residual);
  }
}

// More rows than stripes, and groups that no warp has to itself.
TEST_P(CudaLayerNorm, ManyRows) {
  Compare(9001, 3, 8, true);
  Compare(9001, 1, 72, false);
  Compare(4501, 5, 40, true);
  Compare(2501, 4, 512, true);
  Compare(601, 1, 3000, false);
}

// The variance is that around the mean.
TEST_P(CudaLayerNorm, SurvivesALargeMean) {
  const Shape shape{9, 2, 72};
  OwnedTensor x(DType::kF32, shape);
  for (int64_t i = 0; i < shape.size(); ++i) {
    Set(x.tensor, i, 64 + static_cast<double>(random_.Int(-64, 64)) / 2);  // exact in bfloat16
  }
  std::vector<OwnedTensor> results;
  const OwnedTensor weight = ZeroCuda(GetParam(), {2, 72});
  for (const double shift : {0.0, 64.0}) {
    for (int64_t i = 0; i < shape.size(); ++i) Set(x.tensor, i, Get(x.tensor, i) - shift);
    const OwnedTensor y = PoisonedCuda(GetParam(), shape);
    const OwnedTensor mean = PoisonedCuda(DType::kF32, {18}),
                      rstd = PoisonedCuda(DType::kF32, {18});
    LayerNormForward({.x = ToCuda(x.tensor, GetParam()).tensor,
                      .weight = weight.tensor,
                      .y = y.tensor,
                      .mean = mean.tensor,
                      .rstd = rstd.tensor});
    results.push_back(ToHost(y.tensor));
  }
  EXPECT_LT(RelativeError(results[0].tensor, results[1].tensor), Tolerance(GetParam()));
}

TEST_P(CudaLayerNorm, InputGradientMayReplaceTheResidual) {
  const DType dtype = GetParam();
  const Shape shape{33, 2, 136};
  const auto random = [&](Shape s, DType type) {
    return ToCuda(RandomTensor(type, s, random_).tensor);
  };
  Case c{.x = random(shape, dtype),
         .weight = random({2, 136}, dtype),
         .dy = random(shape, dtype),
         .dresidual = random(shape, dtype),
         .mean = random({66}, DType::kF32),
         .rstd = random({66}, DType::kF32),
         .dx = PoisonedCuda(dtype, shape),
         .dweight = ZeroCuda(DType::kF32, {2, 136})};
  c.workspace = PoisonedCuda(DType::kF32, {LayerNormBackwardWorkspace(c.x.tensor)});
  LayerNormBackwardArgs args = c.backward(true);
  LayerNormBackward(args);
  args.dx = args.dresidual;
  LayerNormBackward(args);
  EXPECT_TRUE(BitwiseEqual(ToHost(c.dx.tensor).tensor, ToHost(c.dresidual.tensor).tensor));
}

TEST_P(CudaLayerNorm, RejectsWrongTypesWideGroupsAndMissingWorkspace) {
  const DType dtype = GetParam();
  const OwnedTensor x = ZeroCuda(dtype, {3, 2, 8}), other = ZeroCuda(dtype, {3, 2, 8});
  const OwnedTensor weight = ZeroCuda(dtype, {2, 8}), mean = ZeroCuda(DType::kF32, {6});
  const OwnedTensor wide = ZeroCuda(dtype, {1, 1, 16392}),
                    wide_weight = ZeroCuda(dtype, {1, 16392});
  const OwnedTensor wrong = ZeroCuda(DType::kI32, {3, 2, 8}),
                    dweight = ZeroCuda(DType::kF32, {2, 8});
  const LayerNormForwardArgs good{x.tensor,     weight.tensor, kEpsilon,
                                  other.tensor, mean.tensor,   mean.tensor};
  EXPECT_NO_THROW(LayerNormForward(good));
  LayerNormForwardArgs bad = good;
  bad.y = wrong.tensor;
  EXPECT_THROW(LayerNormForward(bad), Error);
  bad = {wide.tensor, wide_weight.tensor,     kEpsilon,
         wide.tensor, mean.tensor.Rows(0, 1), mean.tensor.Rows(0, 1)};
  EXPECT_THROW(LayerNormForward(bad), Error);
  EXPECT_THROW(LayerNormBackward({.x = x.tensor,
                                  .weight = weight.tensor,
                                  .mean = mean.tensor,
                                  .rstd = mean.tensor,
                                  .dy = x.tensor,
                                  .dx = other.tensor,
                                  .dweight = dweight.tensor}),
               Error);
}

INSTANTIATE_TEST_SUITE_P(Types, CudaLayerNorm, testing::ValuesIn(kCudaTypes),
                         [](const auto& type) { return std::string(Name(type.param)); });

}  // namespace
}  // namespace eyrie
