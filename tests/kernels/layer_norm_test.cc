#include "kernels/cuda_partition.h"
#include "tests/kernels/norm_problem.h"

namespace eyrie {
namespace {

using Problem = LayerNormProblem;

TEST(LayerNorm, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t rows : {1, 3, 33, 700}) {
    for (int64_t groups : {1, 4, 5}) {
      for (int64_t width : {1, 5, 17, 64, 130}) {
        SCOPED_TRACE(StrCat("N ", rows, " G ", groups, " D ", width));
        const auto c = RandomNorm<Problem>(DType::kF64, {rows, groups, width}, random);
        LayerNormForward(c.forward());
        OwnedTensor expected(DType::kF64, {rows, groups, width});
        for (int64_t group = 0; group < rows * groups; ++group) {
          const int64_t first = group * width;
          double mean = 0, variance = 0;
          for (int64_t j = 0; j < width; ++j) mean += Get(c.x.tensor, first + j);
          mean /= static_cast<double>(width);
          for (int64_t j = 0; j < width; ++j) {
            variance += std::pow(Get(c.x.tensor, first + j) - mean, 2);
          }
          const double root = std::sqrt(variance / static_cast<double>(width) + kNormEpsilon);
          EXPECT_NEAR(Get(c.mean.tensor, group), mean, 1e-13);
          EXPECT_NEAR(Get(c.rstd.tensor, group) * root, 1, 1e-13);
          for (int64_t j = 0; j < width; ++j) {
            const double weight = 1 + Get(c.weight.tensor, group % groups * width + j);
            Set(expected.tensor, first + j, (Get(c.x.tensor, first + j) - mean) / root * weight);
          }
        }
        EXPECT_LT(RelativeError(c.y.tensor, expected.tensor), 1e-13);
      }
    }
  }
}

// The variance is that around the mean: a large one costs no digits but those of x itself.
TEST(LayerNorm, SurvivesALargeMean) {
  TestRandom random;
  const auto near = RandomNorm<Problem>(DType::kF32, {9, 2, 65}, random);
  for (int64_t i = 0; i < near.x.tensor.size(); ++i) {
    Set(near.x.tensor, i, static_cast<double>(random.Int(-64, 64)) / 64);
  }
  const auto far = CastNorm(near, DType::kF32);
  for (int64_t i = 0; i < far.x.tensor.size(); ++i) {
    Set(far.x.tensor, i, Get(far.x.tensor, i) + 4096);
  }
  LayerNormForward(near.forward());
  LayerNormForward(far.forward());
  EXPECT_LT(RelativeError(far.y.tensor, near.y.tensor), 1e-3);
}

TEST(LayerNorm, RejectsWrongShapes) {
  TestRandom random;
  const auto c = RandomNorm<Problem>(DType::kF32, {3, 2, 5}, random);
  const OwnedTensor wrong(DType::kF32, {10}), other_type(DType::kF64, {2, 5});
  EXPECT_NO_THROW(LayerNormForward(c.forward()));
  const auto rejects = [&](Tensor LayerNormForwardArgs::*member, const Tensor& value) {
    LayerNormForwardArgs bad = c.forward();
    bad.*member = value;
    EXPECT_THROW(LayerNormForward(bad), Error);
  };
  for (const auto member : {&LayerNormForwardArgs::weight, &LayerNormForwardArgs::y,
                            &LayerNormForwardArgs::mean, &LayerNormForwardArgs::rstd}) {
    rejects(member, wrong.tensor);
    rejects(member, {});
  }
  rejects(&LayerNormForwardArgs::weight, other_type.tensor);
  LayerNormBackwardArgs bad = c.backward(true);
  bad.dweight = wrong.tensor;
  EXPECT_THROW(LayerNormBackward(bad), Error);
}

// A row of sums for every stripe, and no more stripes than rows.
TEST(LayerNorm, WorkspaceOnGpusIsKnownWithoutOne) {
  const auto workspace = [](int64_t rows, Device device) {
    return LayerNormBackwardWorkspace(OwnedTensor(DType::kF32, {rows, 4, 64}, device).tensor);
  };
  EXPECT_EQ(workspace(700, Device::kMeta), 0);
  EXPECT_EQ(workspace(700, Device::kMetaCuda), 700 * 4 * 64);
  EXPECT_EQ(workspace(100000, Device::kMetaCuda), 32 * kPlannedMultiprocessors * 4 * 64);
}

}  // namespace
}  // namespace eyrie
