#include "kernels/lrpe/lrpe.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

struct Case {
  Case(DType dtype, int64_t batch, int64_t time, int64_t heads, int64_t width, bool rotates,
       TestRandom& random)
      : x(RandomTensor(dtype, {batch, time, heads, width}, random, 2)),
        positions(RandomPositions(batch, time, random, true)) {
    Shape shape = x.tensor.shape;
    if (rotates) {
      shape.Set(3, 2 * width);
      theta = RandomTensor(dtype, {heads, width}, random);
      dtheta = OwnedTensor(dtype, {heads, width});
    }
    dy = RandomTensor(dtype, shape, random);
    y = PoisonedTensor(dtype, shape);
    dx = PoisonedTensor(dtype, x.tensor.shape);
  }
  void Forward() { LrpeForward({x.tensor, theta.tensor, positions.tensor, y.tensor}); }
  void Backward() {
    LrpeBackward({x.tensor, theta.tensor, positions.tensor, dy.tensor, dx.tensor, dtheta.tensor});
  }
  OwnedTensor x, theta, positions, y, dy, dx, dtheta;
};

double Silu(double x) { return x / (1 + std::exp(-x)); }

TEST(Lrpe, MatchesReference) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t time : {1, 7, 33}) {
      for (int64_t width : {1, 5, 64}) {
        for (bool rotates : {false, true}) {
          SCOPED_TRACE(StrCat("T ", time, " dh ", width, " rotates ", rotates));
          Case c(dtype, 2, time, 3, width, rotates, random);
          c.Forward();
          OwnedTensor expected(DType::kF64, c.y.tensor.shape);
          for (int64_t row = 0; row < 2 * time * 3; ++row) {
            for (int64_t i = 0; i < width; ++i) {
              const double value = Silu(Get(c.x.tensor, row * width + i));
              if (!rotates) {
                Set(expected.tensor, row * width + i, value);
                continue;
              }
              const double angle =
                  Get(c.positions.tensor, row / 3) * Get(c.theta.tensor, row % 3 * width + i);
              Set(expected.tensor, 2 * row * width + i, value * std::cos(angle));
              Set(expected.tensor, 2 * row * width + width + i, value * std::sin(angle));
            }
          }
          EXPECT_LT(RelativeError(c.y.tensor, expected.tensor),
                    dtype == DType::kF64 ? 1e-13 : 1e-6);
        }
      }
    }
  }
}

TEST(Lrpe, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (bool rotates : {false, true}) {
    Case c(DType::kF64, 2, 9, 3, 5, rotates, random);
    const auto loss = [&] {
      c.Forward();
      return Dot(c.y.tensor, c.dy.tensor);
    };
    c.Backward();
    EXPECT_LT(NumericGradientCheck(loss, c.x.tensor, c.dx.tensor, random), 1e-8);
    if (!rotates) continue;
    // Far positions turn fast.
    EXPECT_LT(NumericGradientCheck(loss, c.theta.tensor, c.dtheta.tensor, random, 3e-5), 1e-6);
    const OwnedTensor once = Clone(c.dtheta.tensor);
    c.Backward();
    for (int64_t i = 0; i < once.tensor.size(); ++i) {
      EXPECT_NEAR(Get(c.dtheta.tensor, i), 2 * Get(once.tensor, i), 1e-10) << "is added to";
    }
  }
}

// The product of a rotated query and key depends on their distance alone.
TEST(Lrpe, ProductsDependOnDistance) {
  TestRandom random;
  const auto product = [&](const Case& c, int64_t t, int64_t s) {
    double sum = 0;
    for (int64_t i = 0; i < 10; ++i) {
      sum += Get(c.y.tensor, t * 10 + i) * Get(c.y.tensor, s * 10 + i);
    }
    return sum;
  };
  Case c(DType::kF64, 1, 6, 1, 5, true, random);
  for (int64_t t = 0; t < 6; ++t) {
    Set(c.positions.tensor, t, static_cast<double>(t + 40));
    for (int64_t i = 0; i < 5; ++i) Set(c.x.tensor, t * 5 + i, Get(c.x.tensor, i));
  }
  c.Forward();
  EXPECT_NEAR(product(c, 2, 0), product(c, 5, 3), 1e-12);
}

TEST(Lrpe, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  Case c(DType::kF32, 2, 65, 3, 64, true, random);
  std::vector<OwnedTensor> results;
  for (const int threads : {1, 2}) {
    WithThreads(threads, [&] {
      c.dtheta = OwnedTensor(DType::kF32, c.theta.tensor.shape);
      c.Forward();
      c.Backward();
      for (const OwnedTensor* output : {&c.y, &c.dx, &c.dtheta}) {
        results.push_back(Clone(output->tensor));
      }
    });
  }
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(BitwiseEqual(results[i].tensor, results[i + 3].tensor)) << i;
  }
}

TEST(Lrpe, RejectsWrongShapes) {
  TestRandom random;
  Case c(DType::kF32, 2, 5, 3, 4, true, random);
  c.theta = OwnedTensor(DType::kF32, {3, 5});
  EXPECT_THROW(c.Forward(), Error);
  Case without(DType::kF32, 2, 5, 3, 4, false, random);
  without.dtheta = OwnedTensor(DType::kF32, {3, 4});
  EXPECT_THROW(without.Backward(), Error);
}

}  // namespace
}  // namespace eyrie
