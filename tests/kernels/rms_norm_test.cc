#include "kernels/elementwise/elementwise.h"
#include "tests/kernels/norm_problem.h"

namespace eyrie {
namespace {

using Problem = RmsNormProblem;

TEST(RmsNorm, ForwardMatchesReference) {
  TestRandom random;
  for (int64_t rows : {1, 2, 3, 33, 700}) {
    for (int64_t width : {1, 5, 17, 64, 130}) {
      SCOPED_TRACE(StrCat("N ", rows, " D ", width));
      const auto c = RandomNorm<Problem>(DType::kF64, {rows, width}, random);
      RmsNormForward(c.forward());
      OwnedTensor expected(DType::kF64, {rows, width});
      for (int64_t row = 0; row < rows; ++row) {
        double mean = 0;
        for (int64_t j = 0; j < width; ++j) {
          mean += std::pow(Get(c.x.tensor, row * width + j), 2) / static_cast<double>(width);
        }
        const double root = std::sqrt(mean + kNormEpsilon);
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

TEST(RmsNorm, WithoutAWeightIsThatOfZeros) {
  TestRandom random;
  const auto zeros = RandomNorm<Problem>(DType::kF32, {7, 3, 65}, random);
  FillZero(zeros.weight.tensor);
  auto absent = CastNorm(zeros, DType::kF32);
  absent.weight = {};
  absent.dweight = {};
  RunNorm(zeros, true);
  RunNorm(absent, true);
  EXPECT_TRUE(BitwiseEqual(absent.y.tensor, zeros.y.tensor));
  EXPECT_TRUE(BitwiseEqual(absent.rstd.tensor, zeros.rstd.tensor));
  EXPECT_TRUE(BitwiseEqual(absent.dx.tensor, zeros.dx.tensor));
  absent.dweight = OwnedTensor(DType::kF32, {65});
  EXPECT_THROW(RmsNormBackward(absent.backward(true)), Error);
}

TEST(RmsNorm, RejectsWrongShapes) {
  TestRandom random;
  const auto c = RandomNorm<Problem>(DType::kF32, {3, 5}, random);
  OwnedTensor wrong(DType::kF32, {3});
  EXPECT_THROW(RmsNormForward({c.x.tensor, wrong.tensor, 1e-6, c.y.tensor, c.rstd.tensor}), Error);
  OwnedTensor rstd(DType::kF32, {4});
  EXPECT_THROW(RmsNormForward({c.x.tensor, c.weight.tensor, 1e-6, c.y.tensor, rstd.tensor}), Error);
}

}  // namespace
}  // namespace eyrie
