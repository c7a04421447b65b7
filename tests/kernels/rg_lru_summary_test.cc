// The RG-LRU's summaries are the affine maps that its forward and backward passes apply to the
// carried state.
#include <gtest/gtest.h>

#include "kernels/rg_lru/rg_lru.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

// decay * state + increment
OwnedTensor Apply(const Tensor& decay, const Tensor& state, const Tensor& increment) {
  OwnedTensor result = Clone(increment);
  for (int64_t i = 0; i < state.size(); ++i) {
    Set(result.tensor, i, Get(decay, i) * Get(state, i) + Get(increment, i));
  }
  return result;
}

TEST(RgLruSummary, IsTheMapFromTheFirstStateToTheLast) {
  TestRandom random;
  for (const auto& [batch, time, channels] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {3, 2, 5}, {2, 7, 130}, {1, 33, 64}}) {
    const Shape full{batch, time, channels}, state{batch, channels};
    for (const bool documents : {false, true}) {
      OwnedTensor positions(DType::kI32, {batch, time});
      if (documents) {
        positions = RandomPositions(batch, time, random, true);
      } else {
        for (int64_t i = 0; i < batch * time; ++i) {
          positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(9 + i % time);
        }
      }
      const auto draw = [&](Shape shape) { return RandomTensor(DType::kF64, shape, random); };
      const OwnedTensor u = draw(full), zi = draw(full), zr = draw(full), h0 = draw(state);
      const OwnedTensor lambda = draw({channels}), dh = draw(full), dh_last = draw(state);
      OwnedTensor h = PoisonedTensor(DType::kF64, full),
                  h_last = PoisonedTensor(DType::kF64, state);
      OwnedTensor decay = PoisonedTensor(DType::kF64, state);
      OwnedTensor increment = PoisonedTensor(DType::kF64, state);
      RgLruForward({.u = u.tensor,
                    .zi = zi.tensor,
                    .zr = zr.tensor,
                    .lambda = lambda.tensor,
                    .positions = positions.tensor,
                    .h0 = h0.tensor,
                    .h = h.tensor,
                    .h_last = h_last.tensor});
      RgLruSummary({.u = u.tensor,
                    .zi = zi.tensor,
                    .zr = zr.tensor,
                    .lambda = lambda.tensor,
                    .positions = positions.tensor,
                    .decay = decay.tensor,
                    .increment = increment.tensor});
      EXPECT_LT(
          RelativeError(Apply(decay.tensor, h0.tensor, increment.tensor).tensor, h_last.tensor),
          1e-12);

      OwnedTensor du(DType::kF64, full), dzi(DType::kF64, full), dzr(DType::kF64, full);
      OwnedTensor dh0 = PoisonedTensor(DType::kF64, state), dlambda(DType::kF64, {channels});
      RgLruBackward({.u = u.tensor,
                     .zi = zi.tensor,
                     .zr = zr.tensor,
                     .lambda = lambda.tensor,
                     .positions = positions.tensor,
                     .h0 = h0.tensor,
                     .h = h.tensor,
                     .dh = dh.tensor,
                     .dh_last = dh_last.tensor,
                     .du = du.tensor,
                     .dzi = dzi.tensor,
                     .dzr = dzr.tensor,
                     .dh0 = dh0.tensor,
                     .dlambda = dlambda.tensor});
      Poison(decay.tensor);
      Poison(increment.tensor);
      RgLruGradSummary({.zr = zr.tensor,
                        .lambda = lambda.tensor,
                        .positions = positions.tensor,
                        .dh = dh.tensor,
                        .decay = decay.tensor,
                        .increment = increment.tensor});
      EXPECT_LT(
          RelativeError(Apply(decay.tensor, dh_last.tensor, increment.tensor).tensor, dh0.tensor),
          1e-12);
    }
  }
}

}  // namespace
}  // namespace eyrie
