// CUDA bodies of LayerNorm against the CPU's in float64.
#include "tests/cuda/norm_compare.h"

namespace eyrie {
namespace {

class CudaLayerNorm : public testing::TestWithParam<DType> {
 protected:
  void Compare(int64_t rows, int64_t groups, int64_t width, bool with_residual) {
    CompareNorm<LayerNormProblem>(GetParam(), {rows, groups, width}, with_residual, random_);
  }

  TestRandom random_;
};

// Each way to divide a group among threads, its limits and what is one beyond them.
TEST_P(CudaLayerNorm, MatchesTheCpu) {
  for (int64_t width :
       {1, 5, 32, 33, 64, 65, 72, 128, 130, 136, 256, 264, 512, 520, 1024, 1032, 2048, 2056}) {
    for (int64_t groups : {1, 3, 4}) {
      for (int64_t rows : {1, 37}) Compare(rows, groups, width, groups != 3);
    }
  }
}

TEST_P(CudaLayerNorm, WideGroups) {
  for (int64_t width : {4096, 4104, 8192, 12345, 16384}) {
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
  ReplaceTheResidual<LayerNormProblem>(GetParam(), {33, 2, 136}, random_);
}

TEST_P(CudaLayerNorm, RejectsWrongTypesWideGroupsAndMissingWorkspace) {
  const DType dtype = GetParam();
  const OwnedTensor x = ZeroCuda(dtype, {3, 2, 8}), other = ZeroCuda(dtype, {3, 2, 8});
  const OwnedTensor weight = ZeroCuda(dtype, {2, 8}), mean = ZeroCuda(DType::kF32, {6});
  const OwnedTensor wide = ZeroCuda(dtype, {1, 1, 16392}),
                    wide_weight = ZeroCuda(dtype, {1, 16392});
  const OwnedTensor wrong = ZeroCuda(DType::kI32, {3, 2, 8}),
                    dweight = ZeroCuda(DType::kF32, {2, 8});
  const LayerNormForwardArgs good{x.tensor,     weight.tensor, kNormEpsilon,
                                  other.tensor, mean.tensor,   mean.tensor};
  EXPECT_NO_THROW(LayerNormForward(good));
  LayerNormForwardArgs bad = good;
  bad.y = wrong.tensor;
  EXPECT_THROW(LayerNormForward(bad), Error);
  bad = {wide.tensor, wide_weight.tensor,     kNormEpsilon,
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

INSTANTIATE_TEST_SUITE_P(Types, CudaLayerNorm, testing::ValuesIn(kCudaTypes), kNameOfParameter);

}  // namespace
}  // namespace eyrie
