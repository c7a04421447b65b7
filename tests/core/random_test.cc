#include "core/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

namespace eyrie {
namespace {

using Words = std::array<uint32_t, 4>;

TEST(Random, HashesNamesByFnv1a) {
  // Landon Curt Noll's published test values for 64 bits.
  EXPECT_EQ(HashName(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(HashName("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_EQ(HashName("foobar"), 0x85944171f73967e8ull);
}

// The lines "philox4x32 10" of Random123's tests/kat_vectors. The counter's low half is the index
// and its high half the stream's hash; the key is the seed. The streams' names were solved for, so
// that their hashes are the vectors' counters.
TEST(Random, GivesThePublishedPhiloxVectors) {
  struct Vector {
    Words counter;
    std::array<uint32_t, 2> key;
    std::string stream;
    Words expected;
  };
  const std::vector<Vector> vectors = {
      {{0, 0, 0, 0},
       {0, 0},
       "\x4b\x58\x03\x05\x70\x87\xfa\x55\x06",
       {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
      {{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
       {0xffffffffu, 0xffffffffu},
       "\x31\x37\x44\x12\x6a\x39\x2f\x32\x32",
       {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
      {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
       {0xa4093822u, 0x299f31d0u},
       "\x3a\x6b\xe8\xd6\x42\x82\xd6\x5b\x3d",
       {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
  };
  const auto join = [](uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; };
  for (const Vector& vector : vectors) {
    ASSERT_EQ(HashName(vector.stream), join(vector.counter[2], vector.counter[3]));
    const Random random(join(vector.key[0], vector.key[1]), vector.stream);
    EXPECT_EQ(random.Bits(join(vector.counter[0], vector.counter[1])), vector.expected);
  }
}

TEST(Random, UniformStaysInsideTheOpenInterval) {
  // Names and indices, solved for, whose bits are all zeros and all ones.
  const Random lowest(0, "\x4d\x26\x2b\x6c\x61\xb0\x4b\x44\x8d");
  const Random highest(0, "\xb7\x9c\x33\x75\x6d\xb1\xb5\xbc\x0a");
  constexpr uint64_t kLowest = 0x58dd724a86d9ccceull, kHighest = 0x4f07c0052c4aee5dull;
  ASSERT_EQ(lowest.Bits(kLowest), (Words{0, 0, 0, 0}));
  ASSERT_EQ(highest.Bits(kHighest), (Words{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}));
  EXPECT_GT(lowest.Uniform(kLowest), 0.0);
  EXPECT_LT(lowest.Uniform(kLowest), 1e-15);
  EXPECT_LT(highest.Uniform(kHighest), 1.0);
  EXPECT_GT(highest.Uniform(kHighest), 1.0 - 1e-15);
  EXPECT_TRUE(std::isfinite(lowest.Normal(kLowest)));
  EXPECT_TRUE(std::isfinite(highest.Normal(kHighest)));
}

struct Moments {
  double mean = 0, variance = 0, skewness = 0, kurtosis = 0;
};

template <class Draw>
Moments MomentsOf(int64_t count, const Draw& draw) {
  double sums[5] = {};
  for (int64_t i = 0; i < count; ++i) {
    double power = 1.0;
    const double value = draw(static_cast<uint64_t>(i));
    for (double& sum : sums) {
      sum += power;
      power *= value;
    }
  }
  for (double& sum : sums) sum /= static_cast<double>(count);
  const double mean = sums[1], variance = sums[2] - mean * mean;
  const double third = sums[3] - 3 * mean * sums[2] + 2 * mean * mean * mean;
  const double fourth =
      sums[4] - 4 * mean * sums[3] + 6 * mean * mean * sums[2] - 3 * mean * mean * mean * mean;
  return {mean, variance, third / std::pow(variance, 1.5), fourth / (variance * variance)};
}

// Bounds of five standard errors; the draws never change.
constexpr int64_t kDraws = 1 << 20;
constexpr double kError = 5.0 / 1024;  // five over the root of kDraws

TEST(Random, UniformHasTheMomentsOfAUniform) {
  const Random random(7, "uniform");
  const Moments moments = MomentsOf(kDraws, [&](uint64_t i) { return random.Uniform(i); });
  EXPECT_NEAR(moments.mean, 0.5, kError * std::sqrt(1.0 / 12));
  EXPECT_NEAR(moments.variance, 1.0 / 12, kError * std::sqrt(1.0 / 180));
}

TEST(Random, NormalHasTheMomentsOfANormal) {
  const Random random(7, "normal");
  const Moments moments = MomentsOf(kDraws, [&](uint64_t i) { return random.Normal(i); });
  EXPECT_NEAR(moments.mean, 0.0, kError);
  EXPECT_NEAR(moments.variance, 1.0, kError * std::sqrt(2.0));
  EXPECT_NEAR(moments.skewness, 0.0, kError * std::sqrt(6.0));
  EXPECT_NEAR(moments.kurtosis, 3.0, kError * std::sqrt(24.0));
}

TEST(Random, DependsOnSeedNameAndIndexAlone) {
  const Random random(3, "blocks.0.mlp.up.w");
  const Words drawn = random.Bits(11);
  random.Bits(12);
  EXPECT_EQ(random.Bits(11), drawn);
  EXPECT_EQ(Random(3, "blocks.0.mlp.up.w").Bits(11), drawn);
  EXPECT_NE(Random(4, "blocks.0.mlp.up.w").Bits(11), drawn);
  EXPECT_NE(Random(3, "blocks.1.mlp.up.w").Bits(11), drawn);
  EXPECT_NE(random.Bits(12), drawn);
  EXPECT_NE(random.Bits(11 + (uint64_t{1} << 32)), drawn);
}

double Correlation(const Random& a, const Random& b, uint64_t shift) {
  double sum = 0;
  for (uint64_t i = 0; i < kDraws; ++i) sum += a.Normal(i) * b.Normal(i + shift);
  return sum / static_cast<double>(kDraws);
}

TEST(Random, NamesAndNeighboursAreIndependent) {
  const Random a(3, "blocks.0.mlp.up.w"), b(3, "blocks.0.mlp.up.b"), c(4, "blocks.0.mlp.up.w");
  EXPECT_NEAR(Correlation(a, b, 0), 0.0, kError);
  EXPECT_NEAR(Correlation(a, c, 0), 0.0, kError);
  EXPECT_NEAR(Correlation(a, a, 1), 0.0, kError);
}

}  // namespace
}  // namespace eyrie
