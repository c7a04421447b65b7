#include "core/vector_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace eyrie {
namespace {

// On every 4099th float32.
TEST(VectorMath, FloatExpAndExpm1AreWithinTwoUnits) {
  double worst_exp = 0, worst_expm1 = 0;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 4099) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!(x > -86.9f && x < 88.7f)) continue;
    // The distance in units in the last place of the exact result.
    const auto error = [](float value, double exact) {
      int exponent;
      std::frexp(exact, &exponent);
      return std::abs(value - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
    };
    worst_exp = std::max(worst_exp, error(Exp(x), std::exp(static_cast<double>(x))));
    worst_expm1 = std::max(worst_expm1, error(Expm1(x), std::expm1(static_cast<double>(x))));
  }
  EXPECT_LT(worst_exp, 2);
  EXPECT_LT(worst_expm1, 2);
}

TEST(VectorMath, FloatExpOfSpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-kInfinity), 0.0f);
  EXPECT_EQ(Exp(-1e30f), 0.0f);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_EQ(Exp(88.8f), kInfinity);
  EXPECT_TRUE(std::isnan(Exp(kNan)));
  EXPECT_EQ(Expm1(0.0f), 0.0f);
  EXPECT_EQ(Expm1(-kInfinity), -1.0f);
  EXPECT_EQ(Expm1(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Expm1(kNan)));
  EXPECT_EQ(Sigmoid(-1e30f), 0.0f);
  EXPECT_EQ(Sigmoid(1e30f), 1.0f);
}

// A loop of odd length runs full vectors, then a remainder.
TEST(VectorMath, VectorsAgreeWithSingleCalls) {
  constexpr int kCount = 1003;
  double x[kCount], exps[kCount], logs[kCount], sines[kCount], cosines[kCount], soft[kCount];
  for (int i = 0; i < kCount; ++i) x[i] = (i - 501) * 0.05;
#pragma omp simd
  for (int i = 0; i < kCount; ++i) exps[i] = Exp(x[i]);
#pragma omp simd
  for (int i = 0; i < kCount; ++i) logs[i] = Log1p(exps[i]);
#pragma omp simd
  for (int i = 0; i < kCount; ++i) sines[i] = Sin(1000 * x[i]);
#pragma omp simd
  for (int i = 0; i < kCount; ++i) cosines[i] = Cos(1000 * x[i]);
#pragma omp simd
  for (int i = 0; i < kCount; ++i) soft[i] = Softplus(x[i]);
  for (int i = 0; i < kCount; ++i) {
    EXPECT_NEAR(exps[i] / std::exp(x[i]), 1, 1e-15);
    EXPECT_NEAR(logs[i] / std::log1p(exps[i]), 1, 1e-15);
    EXPECT_NEAR(sines[i], std::sin(1000 * x[i]), 1e-15);
    EXPECT_NEAR(cosines[i], std::cos(1000 * x[i]), 1e-15);
    EXPECT_NEAR(soft[i] / std::log1p(std::exp(x[i])), 1, 1e-14);
  }
}

}  // namespace
}  // namespace eyrie
