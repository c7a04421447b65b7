#include "kernels/adamw/adamw.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

AdamWArgs RandomSettings(TestRandom& random) {
  AdamWArgs args;
  args.rate = random.Uniform(1e-4, 1e-2);
  args.beta1 = random.Uniform(0.5, 0.95);
  args.beta2 = random.Uniform(0.9, 0.999);
  args.weight_decay = random.Uniform(0, 0.2);
  args.grad_scale = random.Uniform(0.1, 1);
  return args;
}

TEST(AdamW, MatchesTheDefinitionOverSteps) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t n : {1, 7, 130, 20011}) {
      AdamWArgs args = RandomSettings(random);
      const OwnedTensor param = RandomTensor(dtype, {n}, random);
      const OwnedTensor start = Clone(param.tensor);
      const OwnedTensor m(dtype, {n});
      const OwnedTensor v(dtype, {n});
      std::vector<double> p(static_cast<size_t>(n)), mean(p), square(p);
      for (int64_t i = 0; i < n; ++i) p[static_cast<size_t>(i)] = Get(param.tensor, i);
      for (args.step = 1; args.step <= 6; ++args.step) {
        const OwnedTensor grad = RandomTensor(dtype, {n}, random, random.Uniform(0.01, 10));
        args.param = param.tensor;
        args.grad = grad.tensor;
        args.m = m.tensor;
        args.v = v.tensor;
        const OwnedTensor copy = PoisonedTensor(dtype, {n});
        args.copy = args.step % 2 == 0 ? copy.tensor : Tensor{};
        AdamW(args);
        EXPECT_EQ(BitwiseEqual(copy.tensor, param.tensor), args.copy.defined());
        double beta1_power = 1, beta2_power = 1;
        for (int64_t s = 0; s < args.step; ++s) {
          beta1_power *= args.beta1;
          beta2_power *= args.beta2;
        }
        for (size_t i = 0; i < p.size(); ++i) {
          const double g = args.grad_scale * Get(grad.tensor, static_cast<int64_t>(i));
          mean[i] = args.beta1 * mean[i] + (1 - args.beta1) * g;
          square[i] = args.beta2 * square[i] + (1 - args.beta2) * g * g;
          const double update = mean[i] / (1 - beta1_power) /
                                (std::sqrt(square[i] / (1 - beta2_power)) + args.epsilon);
          p[i] -= args.rate * (update + args.weight_decay * p[i]);
        }
      }
      // Of the distance moved, which is small beside the parameters themselves.
      double difference = 0, moved = 0, m_difference = 0, v_difference = 0, v_norm = 0, g_norm = 0;
      for (size_t i = 0; i < p.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        difference += std::pow(Get(param.tensor, at) - p[i], 2);
        moved += std::pow(Get(start.tensor, at) - p[i], 2);
        m_difference += std::pow(Get(m.tensor, at) - mean[i], 2);
        v_difference += std::pow(Get(v.tensor, at) - square[i], 2);
        v_norm += std::pow(square[i], 2);
        g_norm += square[i];  // gradients may cancel in m, so its errors are measured by theirs
      }
      const bool narrow = dtype == DType::kF32;
      EXPECT_LT(std::sqrt(difference), narrow ? 1e-3 * std::sqrt(moved) + 2e-6 : 1e-13);
      EXPECT_LT(std::sqrt(m_difference / g_norm), narrow ? 1e-5 : 1e-14);
      EXPECT_LT(std::sqrt(v_difference / v_norm), narrow ? 1e-6 : 1e-14);
    }
  }
}

// One step of all groups is a step of each, with decay or without.
TEST(AdamW, DecaysByGroup) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t n : {5, 16, 700, 20011}) {
      const OwnedTensor param = RandomTensor(dtype, {n}, random), once = Clone(param.tensor);
      const OwnedTensor grad = RandomTensor(dtype, {n}, random);
      const OwnedTensor m(dtype, {n}), v(dtype, {n}), m2(dtype, {n}), v2(dtype, {n});
      const OwnedTensor decays(DType::kI32, {DecayWords(n)});
      for (int64_t word = 0; word < DecayWords(n); ++word) {
        decays.tensor.data<int32_t>()[word] = static_cast<int32_t>(random.Int(-1 << 30, 1 << 30));
      }
      const AdamWArgs args{.rate = 0.1, .weight_decay = 0.5};
      AdamWArgs all = args;
      all.param = once.tensor, all.grad = grad.tensor, all.m = m.tensor, all.v = v.tensor;
      all.decays = decays.tensor;
      AdamW(all);
      for (int64_t begin = 0; begin < n; begin += kDecayGroup) {
        const int64_t end = std::min(n, begin + kDecayGroup), group = begin / kDecayGroup;
        AdamWArgs one = args;
        one.param = param.tensor.Rows(begin, end), one.grad = grad.tensor.Rows(begin, end);
        one.m = m2.tensor.Rows(begin, end), one.v = v2.tensor.Rows(begin, end);
        if ((decays.tensor.data<int32_t>()[group / 32] >> group % 32 & 1) == 0) {
          one.weight_decay = 0;
        }
        AdamW(one);
      }
      EXPECT_LT(RelativeError(once.tensor, param.tensor), dtype == DType::kF32 ? 1e-6 : 1e-14);
    }
  }
}

TEST(AdamW, FirstStepMovesByTheRate) {
  // m / (1 - beta1) = g and sqrt(v / (1 - beta2)) = |g|: whatever its size, the sign remains.
  for (double g : {3.0, -0.02}) {
    const OwnedTensor param(DType::kF64, {1}), grad(DType::kF64, {1});
    const OwnedTensor m(DType::kF64, {1}), v(DType::kF64, {1});
    Set(param.tensor, 0, 5.0);
    Set(grad.tensor, 0, g);
    AdamW({.param = param.tensor,
           .grad = grad.tensor,
           .m = m.tensor,
           .v = v.tensor,
           .rate = 0.1,
           .epsilon = 0.0,
           .weight_decay = 0.5});
    EXPECT_NEAR(Get(param.tensor, 0), 5.0 - 0.1 * (g > 0 ? 1 : -1) - 0.1 * 0.5 * 5.0, 1e-14);
  }
}

TEST(AdamW, RefusesWrongArguments) {
  const OwnedTensor four(DType::kF32, {4}), five(DType::kF32, {5}), wide(DType::kF64, {4});
  const auto step = [&](const OwnedTensor& grad, int64_t number) {
    AdamW({.param = four.tensor,
           .grad = grad.tensor,
           .m = four.tensor,
           .v = four.tensor,
           .step = number});
  };
  EXPECT_NO_THROW(step(four, 1));
  EXPECT_THROW(step(five, 1), Error);
  EXPECT_THROW(step(wide, 1), Error);
  EXPECT_THROW(step(four, 0), Error);
  const auto copied = [&](const OwnedTensor& copy) {
    AdamW({.param = four.tensor,
           .grad = four.tensor,
           .m = four.tensor,
           .v = four.tensor,
           .copy = copy.tensor});
  };
  EXPECT_NO_THROW(copied(OwnedTensor(DType::kF32, {4})));
  EXPECT_THROW(copied(five), Error);
  EXPECT_THROW(copied(wide), Error);
  const auto decayed = [&](const OwnedTensor& decays) {
    AdamW({.param = four.tensor,
           .grad = four.tensor,
           .m = four.tensor,
           .v = four.tensor,
           .decays = decays.tensor});
  };
  EXPECT_NO_THROW(decayed(OwnedTensor(DType::kI32, {1})));
  EXPECT_THROW(decayed(OwnedTensor(DType::kI32, {2})), Error);
  EXPECT_THROW(decayed(OwnedTensor(DType::kF32, {1})), Error);
}

TEST(SumOfSquares, MatchesTheDefinitionInFloat64) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t n : {1, 7, 8192, 8193, 100003}) {
      const OwnedTensor values = RandomTensor(dtype, {n}, random);
      const double expected = Dot(values.tensor, values.tensor);
      const OwnedTensor one(DType::kF64, {1}), two(DType::kF64, {1});
      WithThreads(1, [&] { SumOfSquares(values.tensor, one.tensor, {}); });
      WithThreads(2, [&] { SumOfSquares(values.tensor, two.tensor, {}); });
      EXPECT_NEAR(Get(one.tensor, 0), expected, 1e-12 * expected);
      EXPECT_TRUE(BitwiseEqual(one.tensor, two.tensor));
      SumOfSquares(values.tensor, one.tensor, {});
      EXPECT_EQ(Get(one.tensor, 0), 2 * Get(two.tensor, 0));  // it is added to
    }
    const OwnedTensor none(DType::kF64, {1});
    SumOfSquares(OwnedTensor(dtype, {0}).tensor, none.tensor, {});
    EXPECT_EQ(Get(none.tensor, 0), 0.0);
  }
}

TEST(SumOfSquares, RefusesWrongSums) {
  const OwnedTensor values(DType::kF32, {4}), two(DType::kF64, {2}), narrow(DType::kF32, {1});
  EXPECT_THROW(SumOfSquares(values.tensor, two.tensor, {}), Error);
  EXPECT_THROW(SumOfSquares(values.tensor, narrow.tensor, {}), Error);
  EXPECT_THROW(SumOfSquares(values.tensor, {}, {}), Error);
}

}  // namespace
}  // namespace eyrie
