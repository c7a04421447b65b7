// CUDA bodies of the block maps against the CPU's in float64.
#include "kernels/block_map/block_map.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

constexpr int64_t kShapes[][2] = {{1, 4}, {3, 12}, {130, 64}, {701, 20}, {65, 516}, {1500, 2048}};

TEST(CudaBlockMap, MapsAndAccumulates) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const auto& [rows, width] : kShapes) {
      for (const bool transposed : {false, true}) {
        SCOPED_TRACE(StrCat(Name(dtype), " ", rows, " x ", width, transposed ? " transposed" : ""));
        const OwnedTensor x = RandomTensor(DType::kF32, {rows, width}, random);
        const OwnedTensor w = RandomTensor(DType::kF32, {width / 4, 4, 4}, random);
        const OwnedTensor added = RandomTensor(DType::kF32, {rows, width}, random);
        const OwnedTensor x_there = ToCuda(x.tensor, dtype), w_there = ToCuda(w.tensor, dtype);
        const OwnedTensor y = PoisonedCuda(dtype, {rows, width});
        const OwnedTensor sum = ToCuda(added.tensor, dtype);
        const OwnedTensor y_exact(DType::kF64, {rows, width});
        const OwnedTensor sum_exact = Rounded(added.tensor, dtype);
        const auto map = [&](const Tensor& in, const Tensor& maps, const Tensor& out,
                             bool accumulate) {
          BlockMap(
              {.x = in, .w = maps, .y = out, .transposed = transposed, .accumulate = accumulate});
        };
        const OwnedTensor x_exact = Rounded(x.tensor, dtype), w_exact = Rounded(w.tensor, dtype);
        map(x_exact.tensor, w_exact.tensor, y_exact.tensor, false);
        map(x_exact.tensor, w_exact.tensor, sum_exact.tensor, true);
        map(x_there.tensor, w_there.tensor, y.tensor, false);
        map(x_there.tensor, w_there.tensor, sum.tensor, true);
        EXPECT_LT(RelativeError(ToHost(y.tensor).tensor, y_exact.tensor), Tolerance(dtype));
        EXPECT_LT(RelativeError(ToHost(sum.tensor).tensor, sum_exact.tensor), Tolerance(dtype));
      }
    }
  }
}

TEST(CudaBlockMap, WeightGradientIsRepeatable) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const auto& [rows, width] : kShapes) {
      SCOPED_TRACE(StrCat(Name(dtype), " ", rows, " x ", width));
      const Shape weights{width / 4, 4, 4};
      const OwnedTensor x = RandomTensor(DType::kF32, {rows, width}, random);
      const OwnedTensor dy = RandomTensor(DType::kF32, {rows, width}, random);
      const OwnedTensor before = RandomTensor(DType::kF32, weights, random);
      const OwnedTensor exact = Cast(before.tensor, DType::kF64);
      BlockMapWeightGrad({.x = Rounded(x.tensor, dtype).tensor,
                          .dy = Rounded(dy.tensor, dtype).tensor,
                          .dw = exact.tensor});
      const OwnedTensor x_there = ToCuda(x.tensor, dtype), dy_there = ToCuda(dy.tensor, dtype);
      const OwnedTensor workspace = PoisonedCuda(DType::kF32, {BlockMapWorkspace(x_there.tensor)});
      const OwnedTensor one = ToCuda(before.tensor), two = ToCuda(before.tensor);
      for (const OwnedTensor* dw : {&one, &two}) {
        BlockMapWeightGrad({.x = x_there.tensor,
                            .dy = dy_there.tensor,
                            .dw = dw->tensor,
                            .workspace = workspace.tensor});
      }
      EXPECT_LT(RelativeError(ToHost(one.tensor).tensor, exact.tensor), 1e-5);
      EXPECT_TRUE(BitwiseEqual(ToHost(one.tensor).tensor, ToHost(two.tensor).tensor));
    }
  }
}

TEST(CudaBlockMap, RefusesWrongTypes) {
  const OwnedTensor narrow = ZeroCuda(DType::kBF16, {3, 8}), wide = ZeroCuda(DType::kF32, {3, 8});
  const OwnedTensor w = ZeroCuda(DType::kF32, {2, 4, 4}), here(DType::kF32, {3, 8});
  EXPECT_THROW(BlockMap({.x = narrow.tensor, .w = w.tensor, .y = narrow.tensor}), Error);
  EXPECT_THROW(BlockMap({.x = wide.tensor, .w = w.tensor, .y = here.tensor}), Error);
  EXPECT_THROW(BlockMapWeightGrad({.x = wide.tensor, .dy = wide.tensor, .dw = w.tensor}), Error);
}

}  // namespace
}  // namespace eyrie
