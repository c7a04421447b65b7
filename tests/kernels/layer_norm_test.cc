#include "kernels/norm/layer_norm.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

struct Case {
  Case(DType dtype, Shape shape, TestRandom& random)
      : x(RandomTensor(dtype, shape, random)),
        weight(RandomTensor(dtype, {shape[-2], shape[-1]}, random, 0.3)),
        dy(RandomTensor(dtype, shape, random)),
        dresidual(RandomTensor(dtype, shape, random)) {
    PrepareOutputs();
  }
  Case(const Case& other, DType dtype)
      : x(Cast(other.x.tensor, dtype)),
        weight(Cast(other.weight.tensor, dtype)),
        dy(Cast(other.dy.tensor, dtype)),
        dresidual(Cast(other.dresidual.tensor, dtype)) {
    PrepareOutputs();
  }
  void PrepareOutputs() {
    const DType dtype = x.tensor.dtype;
    const Shape statistics{x.tensor.size() / x.tensor.dim(-1)};
    y = PoisonedTensor(dtype, x.tensor.shape);
    mean = PoisonedTensor(dtype, statistics);
    rstd = PoisonedTensor(dtype, statistics);
    dx = PoisonedTensor(dtype, x.tensor.shape);
    dweight = OwnedTensor(dtype, weight.tensor.shape);
  }
  LayerNormForwardArgs forward() const {
    return {x.tensor, weight.tensor, kEpsilon, y.tensor, mean.tensor, rstd.tensor};
  }
  LayerNormBackwardArgs backward(bool with_residual) const {
    return {.x = x.tensor,
            .weight = weight.tensor,
            .mean = mean.tensor,
            .rstd = rstd.tensor,
            .dy = dy.tensor,
            .dresidual = with_residual ? dresidual.tensor : Tensor{},
            .dx = dx.tensor,
            .dweight = dweight.tensor};
  }
  void Forward() const { LayerNormForward(forward()); }
  void Backward(bool with_residual) const { LayerNormBackward(backward(with_residual)); }

  static constexpr double kEpsilon = 1e-2;  // large enough for its place to matter
  OwnedTensor x, weight, dy, dresidual;
  OwnedTensor y, mean, rstd, dx, dweight;
};

TEST(LayerNorm, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t rows : {1, 3, 33, 700}) {
    for (int64_t groups : {1, 4, 5}) {
      for (int64_t width : {1, 5, 17, 64, 130}) {
        SCOPED_TRACE(StrCat("N ", rows, " G ", groups, " D ", width));
        Case c(DType::kF64, {rows, groups, width}, random);
        c.Forward();
        OwnedTensor expected(DType::kF64, {rows, groups, width});
        for (int64_t group = 0; group < rows * groups; ++group) {
          const int64_t first = group * width;
          double mean = 0, variance = 0;
          for (int64_t j = 0; j < width; ++j) mean += Get(c.x.tensor, first + j);
          mean /= static_cast<double>(width);
          for (int64_t j = 0; j < width; ++j) {
            variance += std::pow(Get(c.x.tensor, first + j) - mean, 2);
          }
          const double root = std::sqrt(variance / static_cast<double>(width) + Case::kEpsilon);
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

TEST(LayerNorm, FloatAgreesWithDouble) {
  TestRandom random;
  Case wide(DType::kF64, {3, 33, 3, 130}, random);
  Case narrow(wide, DType::kF32);
  for (Case* c : {&wide, &narrow}) {
    c->Forward();
    c->Backward(true);
  }
  EXPECT_LT(RelativeError(narrow.y.tensor, wide.y.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.mean.tensor, wide.mean.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.rstd.tensor, wide.rstd.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.dx.tensor, wide.dx.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.dweight.tensor, wide.dweight.tensor), 2e-6);
}

// The variance is that around the mean: a large one costs no digits but those of x itself.
TEST(LayerNorm, SurvivesALargeMean) {
  TestRandom random;
  Case near(DType::kF32, {9, 2, 65}, random);
  for (int64_t i = 0; i < near.x.tensor.size(); ++i) {
    Set(near.x.tensor, i, static_cast<double>(random.Int(-64, 64)) / 64);
  }
  Case far(near, DType::kF32);
  for (int64_t i = 0; i < far.x.tensor.size(); ++i) {
    Set(far.x.tensor, i, Get(far.x.tensor, i) + 4096);
  }
  near.Forward();
  far.Forward();
  EXPECT_LT(RelativeError(far.y.tensor, near.y.tensor), 1e-3);
}

// The loss holds the residual stream itself, whose gradient arrives as dresidual.
TEST(LayerNorm, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (bool with_residual : {false, true}) {
    for (int64_t groups : {1, 3}) {
      for (int64_t width : {2, 5, 130}) {
        SCOPED_TRACE(StrCat("residual ", with_residual, " G ", groups, " D ", width));
        Case c(DType::kF64, {7, 3, groups, width}, random);
        c.Forward();
        c.Backward(with_residual);
        const auto loss = [&] {
          c.Forward();
          return Dot(c.dy.tensor, c.y.tensor) +
                 (with_residual ? Dot(c.dresidual.tensor, c.x.tensor) : 0.0);
        };
        EXPECT_LT(NumericGradientCheck(loss, c.x.tensor, c.dx.tensor, random), 1e-6);
        EXPECT_LT(NumericGradientCheck(loss, c.weight.tensor, c.dweight.tensor, random), 1e-6);
      }
    }
  }
}

TEST(LayerNorm, InputGradientMayReplaceTheResidual) {
  TestRandom random;
  Case c(DType::kF32, {33, 2, 65}, random);
  c.Forward();
  c.Backward(true);
  LayerNormBackwardArgs in_place = c.backward(true);
  in_place.dx = in_place.dresidual;
  LayerNormBackward(in_place);
  EXPECT_TRUE(BitwiseEqual(c.dresidual.tensor, c.dx.tensor));
}

TEST(LayerNorm, WeightGradientIsAddedTo) {
  TestRandom random;
  Case c(DType::kF64, {33, 2, 5}, random);
  c.Forward();
  c.Backward(false);
  const OwnedTensor once = Clone(c.dweight.tensor);
  c.Backward(false);
  for (int64_t j = 0; j < 10; ++j) {
    EXPECT_NEAR(Get(c.dweight.tensor, j), 2 * Get(once.tensor, j), 1e-12);
  }
}

TEST(LayerNorm, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  Case one(DType::kF32, {701, 5, 26}, random);
  Case two(one, DType::kF32);
  WithThreads(1, [&] {
    one.Forward();
    one.Backward(true);
  });
  WithThreads(2, [&] {
    two.Forward();
    two.Backward(true);
  });
  for (const auto which : {&Case::y, &Case::mean, &Case::rstd, &Case::dx, &Case::dweight}) {
    EXPECT_TRUE(BitwiseEqual((one.*which).tensor, (two.*which).tensor));
  }
}

TEST(LayerNorm, RejectsWrongShapes) {
  TestRandom random;
  const Case c(DType::kF32, {3, 2, 5}, random);
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

}  // namespace
}  // namespace eyrie
