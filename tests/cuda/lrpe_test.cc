// CUDA bodies of LRPE against the CPU's in float64.
#include "kernels/lrpe/lrpe.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

TEST(CudaLrpe, MatchesTheCpu) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const int64_t time : {1, 33, 700}) {
      for (const int64_t width : {5, 8, 64, 128}) {
        for (const bool rotates : {false, true}) {
          SCOPED_TRACE(StrCat(Name(dtype), " T ", time, " dh ", width, " rotates ", rotates));
          const Shape shape{2, time, 3, width}, wide{2, time, 3, rotates ? 2 * width : width};
          const OwnedTensor x = RandomTensor(DType::kF32, shape, random, 2);
          const OwnedTensor dy = RandomTensor(DType::kF32, wide, random);
          const OwnedTensor positions = RandomPositions(2, time, random, true);
          OwnedTensor theta, start;
          if (rotates) {
            theta = RandomTensor(DType::kF32, {3, width}, random);
            start = RandomTensor(DType::kF32, {3, width}, random);
          }
          const auto given = [&](const OwnedTensor& tensor, const auto& move) {
            return rotates ? move(tensor) : OwnedTensor();
          };

          const auto rounded = [&](const OwnedTensor& from) { return Rounded(from.tensor, dtype); };
          const OwnedTensor y = PoisonedTensor(DType::kF64, wide);
          const OwnedTensor dx = PoisonedTensor(DType::kF64, shape);
          const OwnedTensor dtheta =
              given(start, [](const OwnedTensor& from) { return Cast(from.tensor, DType::kF64); });
          const OwnedTensor angles = given(theta, rounded);
          LrpeForward({rounded(x).tensor, angles.tensor, positions.tensor, y.tensor});
          LrpeBackward({rounded(x).tensor, angles.tensor, positions.tensor, rounded(dy).tensor,
                        dx.tensor, dtheta.tensor});

          const OwnedTensor x_there = ToCuda(x.tensor, dtype), dy_there = ToCuda(dy.tensor, dtype);
          const OwnedTensor there = ToCuda(positions.tensor);
          const OwnedTensor theta_there =
              given(theta, [&](const OwnedTensor& from) { return ToCuda(from.tensor, dtype); });
          const int64_t elements = LrpeBackwardWorkspace(x_there.tensor, theta_there.tensor);
          OwnedTensor workspace;
          if (elements > 0) workspace = OwnedTensor(DType::kF32, {elements}, Device::kCuda);
          std::vector<OwnedTensor> results;
          for (int turn = 0; turn < 2; ++turn) {
            const OwnedTensor y_there = PoisonedCuda(dtype, wide);
            const OwnedTensor dx_there = PoisonedCuda(dtype, shape);
            const OwnedTensor dtheta_there =
                given(start, [](const OwnedTensor& from) { return ToCuda(from.tensor); });
            LrpeForward({x_there.tensor, theta_there.tensor, there.tensor, y_there.tensor});
            LrpeBackward({x_there.tensor, theta_there.tensor, there.tensor, dy_there.tensor,
                          dx_there.tensor, dtheta_there.tensor, workspace.tensor});
            results.push_back(ToHost(y_there.tensor));
            results.push_back(ToHost(dx_there.tensor));
            if (rotates) results.push_back(ToHost(dtheta_there.tensor));
          }
          const std::vector<Tensor> expected = {y.tensor, dx.tensor, dtheta.tensor};
          const size_t outputs = rotates ? 3 : 2;
          for (size_t i = 0; i < outputs; ++i) {
            EXPECT_LT(RelativeError(results[i].tensor, expected[i]), Tolerance(dtype)) << i;
            EXPECT_TRUE(BitwiseEqual(results[i].tensor, results[i + outputs].tensor)) << i;
          }
        }
      }
    }
  }
}

// float32 angles would be wrong by about 0.01 here.
TEST(CudaLrpe, AnglesOfFarPositionsAreExact) {
  TestRandom random;
  const OwnedTensor x = RandomTensor(DType::kF32, {1, 5, 1, 64}, random);
  const OwnedTensor theta = RandomTensor(DType::kF32, {1, 64}, random);
  const OwnedTensor positions(DType::kI32, {1, 5});
  for (int64_t t = 0; t < 5; ++t) {
    Set(positions.tensor, t, static_cast<double>(random.Int(1 << 19, 1 << 20)));
  }
  const OwnedTensor y = PoisonedTensor(DType::kF64, {1, 5, 1, 128});
  LrpeForward({Cast(x.tensor, DType::kF64).tensor, Cast(theta.tensor, DType::kF64).tensor,
               positions.tensor, y.tensor});
  const OwnedTensor there = PoisonedCuda(DType::kF32, {1, 5, 1, 128});
  LrpeForward({ToCuda(x.tensor).tensor, ToCuda(theta.tensor).tensor,
               ToCuda(positions.tensor).tensor, there.tensor});
  EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, y.tensor), 1e-5);
}

TEST(CudaLrpe, RefusesWrongTypes) {
  const OwnedTensor x = ZeroCuda(DType::kF32, {1, 5, 2, 8}),
                    y = ZeroCuda(DType::kBF16, {1, 5, 2, 8});
  const OwnedTensor positions = ZeroCuda(DType::kI32, {1, 5});
  EXPECT_THROW(LrpeForward({x.tensor, {}, positions.tensor, y.tensor}), Error);
}

}  // namespace
}  // namespace eyrie
