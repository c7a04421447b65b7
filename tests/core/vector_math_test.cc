#include "core/vector_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace eyrie {
namespace {

// The distance in units in the last place of the exact result.
double Units(float value, double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::abs(value - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

// Calls body(x) for every 4099th float32 between two bounds.
template <class Body>
void ForFloats(float least, float most, const Body& body) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 4099) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (x > least && x < most) body(x);
  }
}

TEST(VectorMath, FloatFunctionsAreWithinTwoUnits) {
  double worst_exp = 0, worst_non_positive = 0;
  double worst_sigmoid = 0, worst_divided = 0, worst_root = 0, worst_slope = 0;
  ForFloats(-86.2f, 200.0f, [&](float x) {
    const double exact = 1 / (1 + std::exp(-static_cast<double>(x)));
    worst_sigmoid = std::max(worst_sigmoid, Units(Sigmoid(x), exact));
    worst_divided = std::max(worst_divided, Units(SigmoidByDivision(SigmoidExp(x)), exact));
  });
  ForFloats(1e-30f, 1e30f, [&](float x) {
    const SquareRoot<float> root(x);
    const double exact = std::sqrt(static_cast<double>(x));
    worst_root = std::max(worst_root, Units(root.root, exact));
    worst_slope = std::max(worst_slope, Units(root.slope, 0.5 / exact));
  });
  ForFloats(-1e30f, 0.0f, [&](float x) {
    const double exact = std::expm1(static_cast<double>(x));
    worst_non_positive = std::max(worst_non_positive, Units(Expm1NonPositive(x), exact));
  });
  EXPECT_LT(worst_sigmoid, 2);
  EXPECT_LT(worst_divided, 2.5);
  EXPECT_LT(worst_root, 2);
  EXPECT_LT(worst_slope, 2);
  EXPECT_LT(worst_non_positive, 2);
  ForFloats(-86.9f, 88.7f, [&](float x) {
    worst_exp = std::max(worst_exp, Units(Exp(x), std::exp(static_cast<double>(x))));
  });
  EXPECT_LT(worst_exp, 2);
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
  EXPECT_EQ(Sigmoid(-1e30f), 0.0f);
  EXPECT_EQ(Sigmoid(1e30f), 1.0f);
  EXPECT_EQ(Sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(Sigmoid(kInfinity), 1.0f);
  EXPECT_TRUE(std::isnan(Sigmoid(kNan)));
  EXPECT_TRUE(std::isnan(Sigmoid(-kNan)));
  EXPECT_EQ(Expm1NonPositive(0.0f), 0.0f);
  EXPECT_EQ(Expm1NonPositive(-kInfinity), -1.0f);
  EXPECT_TRUE(std::isnan(Expm1NonPositive(kNan)));
  EXPECT_EQ(SquareRoot<float>(0.0f).root, 0.0f);
  EXPECT_EQ(SquareRoot<double>(0.0).root, 0.0);
  EXPECT_GT(SquareRoot<float>(0.0f).slope, 1e15f);
  EXPECT_TRUE(std::isfinite(SquareRoot<float>(0.0f).slope));
  EXPECT_TRUE(std::isnan(SquareRoot<float>(kNan).root));
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
