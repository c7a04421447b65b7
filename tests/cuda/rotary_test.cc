// The CUDA body of the rotary embedding against the CPU's in float64.
#include "kernels/rotary/rotary.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

TEST(CudaRotary, MatchesTheCpu) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (int64_t batch : {1, 3}) {
      for (int64_t time : {1, 7, 33}) {
        for (int64_t heads : {1, 3, 10}) {
          for (int64_t width : {4, 8, 20, 64, 128, 256}) {
            for (bool inverse : {false, true}) {
              SCOPED_TRACE(StrCat(Name(dtype), " B ", batch, " T ", time, " H ", heads, " dh ",
                                  width, " inverse ", inverse));
              const Shape shape{batch, time, heads, width};
              const OwnedTensor x = RandomTensor(DType::kF32, shape, random);
              const OwnedTensor positions = RandomPositions(batch, time, random, true);
              const double base = random.Uniform(100, 20000);
              const OwnedTensor expected = Rounded(x.tensor, dtype);
              Rotary({expected.tensor, positions.tensor, base, inverse});
              const OwnedTensor one = ToCuda(x.tensor, dtype), two = ToCuda(x.tensor, dtype);
              const OwnedTensor there = ToCuda(positions.tensor);
              Rotary({one.tensor, there.tensor, base, inverse});
              Rotary({two.tensor, there.tensor, base, inverse});
              const OwnedTensor result = ToHost(one.tensor);
              EXPECT_LT(RelativeError(result.tensor, expected.tensor), Tolerance(dtype));
              EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost(two.tensor).tensor));
            }
          }
        }
      }
    }
  }
}

// float32 angles would be wrong by about 0.01 here.
TEST(CudaRotary, AnglesOfFarPositionsAreExact) {
  TestRandom random;
  const OwnedTensor x = RandomTensor(DType::kF32, {1, 5, 1, 64}, random);
  const OwnedTensor positions(DType::kI32, {1, 5});
  for (int64_t t = 0; t < 5; ++t) {
    Set(positions.tensor, t, static_cast<double>(random.Int(1 << 19, 1 << 20)));
  }
  const OwnedTensor expected = Cast(x.tensor, DType::kF64), there = ToCuda(x.tensor);
  Rotary({expected.tensor, positions.tensor, 10000, false});
  Rotary({there.tensor, ToCuda(positions.tensor).tensor, 10000, false});
  EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, expected.tensor), 1e-6);
}

TEST(CudaRotary, WideHeads) {
  TestRandom random;
  const OwnedTensor x = RandomTensor(DType::kF32, {1, 3, 1, 8192}, random);
  const OwnedTensor positions = RandomPositions(1, 3, random, true);
  const OwnedTensor expected = Cast(x.tensor, DType::kF64), there = ToCuda(x.tensor);
  Rotary({expected.tensor, positions.tensor, 10000, false});
  Rotary({there.tensor, ToCuda(positions.tensor).tensor, 10000, false});
  EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, expected.tensor), 1e-6);
  const OwnedTensor wider = ZeroCuda(DType::kF32, {1, 3, 1, 8196});
  EXPECT_THROW(Rotary({wider.tensor, ToCuda(positions.tensor).tensor, 10000, false}), Error);
}

TEST(CudaRotary, RefusesWrongTypes) {
  const OwnedTensor x = ZeroCuda(DType::kBF16, {1, 3, 1, 8});
  EXPECT_THROW(Rotary({x.tensor, ZeroCuda(DType::kF32, {1, 3}).tensor, 10000, false}), Error);
  EXPECT_THROW(Rotary({x.tensor, OwnedTensor(DType::kI32, {1, 3}).tensor, 10000, false}), Error);
}

}  // namespace
}  // namespace eyrie
