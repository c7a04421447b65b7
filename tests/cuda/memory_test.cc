// Memory of the GPU: buffers, copies, the arena.
#include "core/memory.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

TEST(CudaMemory, BuffersAreZeroedAndCopyBothWays) {
  TestRandom random;
  const OwnedTensor zero = ZeroCuda(DType::kF32, {1001});
  EXPECT_EQ(Dot(ToHost(zero.tensor).tensor, ToHost(zero.tensor).tensor), 0.0);
  const OwnedTensor x = RandomTensor(DType::kF32, {7, 143}, random);
  const OwnedTensor there = ToCuda(x.tensor);
  const OwnedTensor again(DType::kF32, {7, 143}, Device::kCuda);
  Copy(there.tensor, again.tensor);
  EXPECT_EQ(RelativeError(ToHost(again.tensor).tensor, Cast(x.tensor, DType::kF64).tensor), 0.0);
  FillZero(again.tensor);
  EXPECT_EQ(Dot(ToHost(again.tensor).tensor, ToHost(again.tensor).tensor), 0.0);
}

TEST(CudaMemory, CopiesRowsOfEachSequence) {
  TestRandom random;
  const OwnedTensor x = RandomTensor(DType::kF32, {3, 9, 5}, random);
  const OwnedTensor there = ToCuda(x.tensor), to = ZeroCuda(DType::kF32, {3, 4, 5});
  CopyRows(there.tensor, 6, to.tensor, 1, 3);
  const OwnedTensor expected(DType::kF32, {3, 4, 5});
  CopyRows(x.tensor, 6, expected.tensor, 1, 3);
  EXPECT_EQ(RelativeError(ToHost(to.tensor).tensor, Cast(expected.tensor, DType::kF64).tensor), 0);
}

// Narrow rows, as columns of gates, and wide ones; of each number of bytes that words divide.
TEST(CudaMemory, CopiesRowsOfAnyWidth) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const int64_t width : {1, 2, 3, 4, 8, 12, 100, 512, 3000}) {
      for (const int64_t first : {0, 1}) {
        SCOPED_TRACE(StrCat(Name(dtype), " width ", width, " from ", first));
        const OwnedTensor x =
            Rounded(RandomTensor(DType::kF32, {700, 3, width}, random).tensor, dtype);
        const OwnedTensor there = ToCuda(x.tensor, dtype), to = ZeroCuda(dtype, {700, 4, width});
        CopyRows(there.tensor, first, to.tensor, 1, 2);
        const OwnedTensor expected(DType::kF64, {700, 4, width});
        CopyRows(x.tensor, first, expected.tensor, 1, 2);
        EXPECT_EQ(RelativeError(ToHost(to.tensor).tensor, expected.tensor), 0);
      }
    }
  }
}

// Of long sequences, whose rows start further apart than the driver copies.
TEST(CudaMemory, CopiesRowsFarApart) {
  TestRandom random;
  constexpr int64_t kTokens = (int64_t{1} << 20) + 1, kWidth = 1024;
  const OwnedTensor x = RandomTensor(DType::kF32, {2, 3, kWidth}, random);
  const OwnedTensor there = ToCuda(x.tensor, DType::kBF16);
  const OwnedTensor sequences = ZeroCuda(DType::kBF16, {2, kTokens, kWidth});
  CopyRows(there.tensor, 0, sequences.tensor, kTokens - 3, 3);
  const OwnedTensor last = PoisonedCuda(DType::kBF16, {2, 2, kWidth});
  CopyRows(sequences.tensor, kTokens - 2, last.tensor, 0, 2);
  const OwnedTensor expected(DType::kF32, {2, 2, kWidth});
  CopyRows(x.tensor, 1, expected.tensor, 0, 2);
  EXPECT_TRUE(
      BitwiseEqual(ToHost(last.tensor).tensor, Rounded(expected.tensor, DType::kBF16).tensor));
}

TEST(CudaMemory, ArenaGrowsWithoutMovingWhatItGave) {
  TestRandom random;
  Arena arena(Device::kCuda);
  const OwnedTensor x = RandomTensor(DType::kF32, {1000}, random);
  const Tensor first = arena.Allocate(DType::kF32, {1000});
  Copy(x.tensor, first);
  const Tensor large = arena.Allocate(DType::kF32, {int64_t{1} << 26});
  FillZero(large);
  EXPECT_EQ(RelativeError(ToHost(first).tensor, Cast(x.tensor, DType::kF64).tensor), 0.0);
  EXPECT_EQ(arena.peak_bytes(), 4096u + (size_t{1} << 28));
}

}  // namespace
}  // namespace eyrie
