#include "kernels/rotary/rotary.h"

#include <complex>

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

constexpr double kBase = 10000;

// As multiplication of the complex number x[i] + j x[i+n] by exp(j angle).
OwnedTensor Reference(const Tensor& x, const Tensor& positions, double base) {
  OwnedTensor y = Cast(x, DType::kF64);
  const int64_t heads = x.dim(2), width = x.dim(3), n = width / 4;
  for (int64_t row = 0; row < positions.size() * heads; ++row) {
    for (int64_t i = 0; i < n; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / (static_cast<double>(width) / 2);
      const double angle = Get(positions, row / heads) * std::pow(base, exponent);
      const int64_t low = row * width + i;
      const auto rotated =
          std::complex<double>(Get(x, low), Get(x, low + n)) * std::polar(1.0, angle);
      Set(y.tensor, low, rotated.real());
      Set(y.tensor, low + n, rotated.imag());
    }
  }
  return y;
}

TEST(Rotary, MatchesReference) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t batch : {1, 3}) {
      for (int64_t time : {1, 2, 7, 33}) {
        for (int64_t heads : {1, 3}) {
          for (int64_t width : {4, 8, 20, 64, 128}) {
            SCOPED_TRACE(StrCat("B ", batch, " T ", time, " H ", heads, " dh ", width));
            OwnedTensor x = RandomTensor(dtype, {batch, time, heads, width}, random);
            const OwnedTensor positions = RandomPositions(batch, time, random, true);
            const OwnedTensor expected = Reference(x.tensor, positions.tensor, kBase);
            Rotary({x.tensor, positions.tensor, kBase, false});
            EXPECT_LT(RelativeError(x.tensor, expected.tensor),
                      dtype == DType::kF64 ? 1e-13 : 1e-6);
          }
        }
      }
    }
  }
}

// float32 angles would be wrong by about 0.01 here.
TEST(Rotary, AnglesOfFarPositionsAreExact) {
  TestRandom random;
  OwnedTensor x = RandomTensor(DType::kF32, {1, 5, 1, 64}, random);
  OwnedTensor positions(DType::kI32, {1, 5});
  for (int64_t t = 0; t < 5; ++t) {
    Set(positions.tensor, t, static_cast<double>(random.Int(1 << 19, 1 << 20)));
  }
  const OwnedTensor expected = Reference(x.tensor, positions.tensor, kBase);
  Rotary({x.tensor, positions.tensor, kBase, false});
  EXPECT_LT(RelativeError(x.tensor, expected.tensor), 1e-6);
}

TEST(Rotary, InverseIsTheTranspose) {
  TestRandom random;
  const Shape shape{2, 7, 3, 20};
  const OwnedTensor x = RandomTensor(DType::kF64, shape, random);
  const OwnedTensor dy = RandomTensor(DType::kF64, shape, random);
  const OwnedTensor positions = RandomPositions(2, 7, random, true);
  OwnedTensor y = Clone(x.tensor), dx = Clone(dy.tensor);
  Rotary({y.tensor, positions.tensor, 500.0, false});
  Rotary({dx.tensor, positions.tensor, 500.0, true});
  EXPECT_NEAR(Dot(dy.tensor, y.tensor), Dot(dx.tensor, x.tensor), 1e-11);

  OwnedTensor input = Clone(x.tensor);
  const auto loss = [&] {
    OwnedTensor rotated = Clone(input.tensor);
    Rotary({rotated.tensor, positions.tensor, 500.0, false});
    return Dot(dy.tensor, rotated.tensor);
  };
  EXPECT_LT(NumericGradientCheck(loss, input.tensor, dx.tensor, random), 1e-6);

  Rotary({y.tensor, positions.tensor, 500.0, true});
  EXPECT_LT(RelativeError(y.tensor, x.tensor), 1e-13);
}

TEST(Rotary, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  OwnedTensor one = RandomTensor(DType::kF32, {2, 65, 3, 64}, random);
  OwnedTensor two = Clone(one.tensor);
  const OwnedTensor positions = RandomPositions(2, 65, random, true);
  WithThreads(1, [&] { Rotary({one.tensor, positions.tensor, kBase, false}); });
  WithThreads(2, [&] { Rotary({two.tensor, positions.tensor, kBase, false}); });
  EXPECT_TRUE(BitwiseEqual(one.tensor, two.tensor));
}

TEST(Rotary, RejectsWrongShapes) {
  OwnedTensor x(DType::kF32, {2, 3, 1, 6});
  OwnedTensor positions(DType::kI32, {2, 3});
  EXPECT_THROW(Rotary({x.tensor, positions.tensor, kBase, false}), Error);
  OwnedTensor y(DType::kF32, {2, 4, 1, 8});
  EXPECT_THROW(Rotary({y.tensor, positions.tensor, kBase, false}), Error);
}

}  // namespace
}  // namespace eyrie
