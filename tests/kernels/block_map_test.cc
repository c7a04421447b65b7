#include "kernels/block_map/block_map.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

constexpr int64_t kShapes[][2] = {{1, 4}, {3, 12}, {7, 64}, {701, 20}, {65, 516}};  // rows, C

// y [rows, C] by the definition.
OwnedTensor Reference(const Tensor& x, const Tensor& w, bool transposed) {
  OwnedTensor y(DType::kF64, x.shape);
  const int64_t rows = x.dim(0), width = x.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      const int64_t g = c / 4, o = c % 4;
      double sum = 0;
      for (int64_t i = 0; i < 4; ++i) {
        sum +=
            Get(w, 16 * g + (transposed ? 4 * i + o : 4 * o + i)) * Get(x, r * width + 4 * g + i);
      }
      Set(y.tensor, r * width + c, sum);
    }
  }
  return y;
}

TEST(BlockMap, MapsAndAccumulates) {
  TestRandom random;
  for (const auto& [rows, width] : kShapes) {
    for (const bool transposed : {false, true}) {
      SCOPED_TRACE(StrCat(rows, " x ", width, transposed ? " transposed" : ""));
      const OwnedTensor x = RandomTensor(DType::kF64, {rows, width}, random);
      const OwnedTensor w = RandomTensor(DType::kF64, {width / 4, 4, 4}, random);
      const OwnedTensor expected = Reference(x.tensor, w.tensor, transposed);
      const OwnedTensor y = PoisonedTensor(DType::kF64, {rows, width});
      BlockMap({.x = x.tensor, .w = w.tensor, .y = y.tensor, .transposed = transposed});
      EXPECT_LT(RelativeError(y.tensor, expected.tensor), 1e-14);
      const OwnedTensor added = RandomTensor(DType::kF64, {rows, width}, random);
      const OwnedTensor sum = Clone(added.tensor);
      BlockMap({.x = x.tensor,
                .w = w.tensor,
                .y = sum.tensor,
                .transposed = transposed,
                .accumulate = true});
      for (int64_t i = 0; i < sum.tensor.size(); ++i) {
        EXPECT_NEAR(Get(sum.tensor, i), Get(added.tensor, i) + Get(expected.tensor, i), 1e-12);
      }
      const OwnedTensor narrow = PoisonedTensor(DType::kF32, {rows, width});
      BlockMap({.x = Cast(x.tensor, DType::kF32).tensor,
                .w = Cast(w.tensor, DType::kF32).tensor,
                .y = narrow.tensor,
                .transposed = transposed});
      EXPECT_LT(RelativeError(narrow.tensor, expected.tensor), 1e-6);
    }
  }
}

TEST(BlockMap, GradientsAreThoseOfFiniteDifferences) {
  TestRandom random;
  const OwnedTensor x = RandomTensor(DType::kF64, {2, 9, 24}, random);
  const OwnedTensor w = RandomTensor(DType::kF64, {6, 4, 4}, random);
  const OwnedTensor dy = RandomTensor(DType::kF64, {2, 9, 24}, random);
  const OwnedTensor y = PoisonedTensor(DType::kF64, {2, 9, 24});
  const auto loss = [&] {
    BlockMap({.x = x.tensor, .w = w.tensor, .y = y.tensor});
    return Dot(y.tensor, dy.tensor);
  };
  const OwnedTensor dx = PoisonedTensor(DType::kF64, {2, 9, 24});
  BlockMap({.x = dy.tensor, .w = w.tensor, .y = dx.tensor, .transposed = true});
  EXPECT_LT(NumericGradientCheck(loss, x.tensor, dx.tensor, random), 1e-9);
  OwnedTensor dw(DType::kF64, {6, 4, 4});
  BlockMapWeightGrad({.x = x.tensor, .dy = dy.tensor, .dw = dw.tensor});
  EXPECT_LT(NumericGradientCheck(loss, w.tensor, dw.tensor, random), 1e-9);
  // A second call adds.
  const OwnedTensor once = Clone(dw.tensor);
  BlockMapWeightGrad({.x = x.tensor, .dy = dy.tensor, .dw = dw.tensor});
  for (int64_t i = 0; i < dw.tensor.size(); ++i) {
    EXPECT_NEAR(Get(dw.tensor, i), 2 * Get(once.tensor, i), 1e-12);
  }
}

TEST(BlockMap, SumsDoNotDependOnThreads) {
  TestRandom random;
  const OwnedTensor x = RandomTensor(DType::kF32, {1500, 36}, random);
  const OwnedTensor dy = RandomTensor(DType::kF32, {1500, 36}, random);
  OwnedTensor one(DType::kF32, {9, 4, 4}), four(DType::kF32, {9, 4, 4});
  WithThreads(1, [&] { BlockMapWeightGrad({.x = x.tensor, .dy = dy.tensor, .dw = one.tensor}); });
  WithThreads(4, [&] { BlockMapWeightGrad({.x = x.tensor, .dy = dy.tensor, .dw = four.tensor}); });
  EXPECT_TRUE(BitwiseEqual(one.tensor, four.tensor));
}

TEST(BlockMap, RefusesWrongShapes) {
  const OwnedTensor x(DType::kF32, {3, 8}), w(DType::kF32, {2, 4, 4}), odd(DType::kF32, {3, 6});
  EXPECT_THROW(BlockMap({.x = odd.tensor, .w = w.tensor, .y = odd.tensor}), Error);
  EXPECT_THROW(BlockMap({.x = x.tensor, .w = w.tensor, .y = odd.tensor}), Error);
  EXPECT_THROW(BlockMap({.x = x.tensor, .w = x.tensor, .y = x.tensor}), Error);
  EXPECT_THROW(BlockMapWeightGrad({.x = x.tensor, .dy = x.tensor, .dw = x.tensor}), Error);
}

}  // namespace
}  // namespace eyrie
