#include "kernels/norm/rms_norm.h"

#include <tuple>

#include "kernels/elementwise/elementwise.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

struct Case {
  Case(DType dtype, Shape shape, TestRandom& random)
      : x(RandomTensor(dtype, shape, random)),
        weight(RandomTensor(dtype, {shape[-1]}, random, 0.3)),
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
    y = PoisonedTensor(dtype, x.tensor.shape);
    rstd = PoisonedTensor(dtype, {x.tensor.size() / x.tensor.dim(-1)});
    dx = PoisonedTensor(dtype, x.tensor.shape);
    dweight = OwnedTensor(dtype, weight.tensor.shape);
  }
  void Forward() { RmsNormForward({x.tensor, weight.tensor, kEpsilon, y.tensor, rstd.tensor}); }
  void Backward(bool with_residual) {
    RmsNormBackward({x.tensor, weight.tensor, rstd.tensor, dy.tensor,
                     with_residual ? dresidual.tensor : Tensor{}, dx.tensor, dweight.tensor});
  }

  static constexpr double kEpsilon = 1e-2;  // large enough for its place to matter
  OwnedTensor x, weight, dy, dresidual;
  OwnedTensor y, rstd, dx, dweight;
};

TEST(RmsNorm, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t rows : {1, 2, 3, 33, 700}) {
    for (int64_t width : {1, 5, 17, 64, 130}) {
      SCOPED_TRACE(StrCat("N ", rows, " D ", width));
      Case c(DType::kF64, {rows, width}, random);
      c.Forward();
      OwnedTensor expected(DType::kF64, {rows, width});
      for (int64_t row = 0; row < rows; ++row) {
        double mean = 0;
        for (int64_t j = 0; j < width; ++j) {
          mean += std::pow(Get(c.x.tensor, row * width + j), 2) / static_cast<double>(width);
        }
        const double root = std::sqrt(mean + Case::kEpsilon);
        EXPECT_NEAR(Get(c.rstd.tensor, row) * root, 1, 1e-13);
        for (int64_t j = 0; j < width; ++j) {
          const int64_t i = row * width + j;
          Set(expected.tensor, i, Get(c.x.tensor, i) / root * (1 + Get(c.weight.tensor, j)));
        }
      }
      EXPECT_LT(RelativeError(c.y.tensor, expected.tensor), 1e-13);
    }
  }
}

TEST(RmsNorm, FloatAgreesWithDouble) {
  TestRandom random;
  Case wide(DType::kF64, {3, 33, 130}, random);
  Case narrow(wide, DType::kF32);
  for (Case* c : {&wide, &narrow}) {
    c->Forward();
    c->Backward(true);
  }
  EXPECT_LT(RelativeError(narrow.y.tensor, wide.y.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.rstd.tensor, wide.rstd.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.dx.tensor, wide.dx.tensor), 1e-6);
  EXPECT_LT(RelativeError(narrow.dweight.tensor, wide.dweight.tensor), 2e-6);
}

// The loss holds the residual stream itself, whose gradient arrives as dresidual.
TEST(RmsNorm, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (bool with_residual : {false, true}) {
    for (int64_t width : {1, 5, 130}) {
      SCOPED_TRACE(StrCat("residual ", with_residual, " D ", width));
      Case c(DType::kF64, {7, 3, width}, random);
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

TEST(RmsNorm, InputGradientMayReplaceTheResidual) {
  TestRandom random;
  Case c(DType::kF32, {33, 130}, random);
  c.Forward();
  c.Backward(true);
  RmsNormBackward({c.x.tensor, c.weight.tensor, c.rstd.tensor, c.dy.tensor, c.dresidual.tensor,
                   c.dresidual.tensor, c.dweight.tensor});
  EXPECT_TRUE(BitwiseEqual(c.dresidual.tensor, c.dx.tensor));
}

TEST(RmsNorm, WeightGradientIsAddedTo) {
  TestRandom random;
  Case c(DType::kF64, {33, 5}, random);
  c.Forward();
  c.Backward(false);
  const OwnedTensor once = Clone(c.dweight.tensor);
  c.Backward(false);
  for (int64_t j = 0; j < 5; ++j) {
    EXPECT_NEAR(Get(c.dweight.tensor, j), 2 * Get(once.tensor, j), 1e-12);
  }
}

TEST(RmsNorm, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  Case one(DType::kF32, {701, 130}, random);
  Case two(one, DType::kF32);
  WithThreads(1, [&] {
    one.Forward();
    one.Backward(true);
  });
  WithThreads(2, [&] {
    two.Forward();
    two.Backward(true);
  });
  EXPECT_TRUE(BitwiseEqual(one.y.tensor, two.y.tensor));
  EXPECT_TRUE(BitwiseEqual(one.rstd.tensor, two.rstd.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dx.tensor, two.dx.tensor));
  EXPECT_TRUE(BitwiseEqual(one.dweight.tensor, two.dweight.tensor));
}

TEST(RmsNorm, WithoutAWeightIsThatOfZeros) {
  TestRandom random;
  Case zeros(DType::kF32, {7, 3, 65}, random), absent(zeros, DType::kF32);
  FillZero(zeros.weight.tensor);
  absent.weight = {};
  absent.dweight = {};
  for (Case* c : {&zeros, &absent}) {
    c->Forward();
    c->Backward(true);
  }
  EXPECT_TRUE(BitwiseEqual(absent.y.tensor, zeros.y.tensor));
  EXPECT_TRUE(BitwiseEqual(absent.rstd.tensor, zeros.rstd.tensor));
  EXPECT_TRUE(BitwiseEqual(absent.dx.tensor, zeros.dx.tensor));
  absent.dweight = OwnedTensor(DType::kF32, {65});
  EXPECT_THROW(absent.Backward(true), Error);
}

TEST(RmsNorm, RejectsWrongShapes) {
  TestRandom random;
  Case c(DType::kF32, {3, 5}, random);
  OwnedTensor wrong(DType::kF32, {3});
  EXPECT_THROW(RmsNormForward({c.x.tensor, wrong.tensor, 1e-6, c.y.tensor, c.rstd.tensor}), Error);
  OwnedTensor rstd(DType::kF32, {4});
  EXPECT_THROW(RmsNormForward({c.x.tensor, c.weight.tensor, 1e-6, c.y.tensor, rstd.tensor}), Error);
}

}  // namespace
}  // namespace eyrie
