#include "kernels/elementwise/elementwise.h"

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

TEST(Elementwise, Add) {
  TestRandom random;
  for (DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t size : {1, 7, 33, 130, 20001}) {
      SCOPED_TRACE(StrCat("size ", size));
      const OwnedTensor a = RandomTensor(dtype, {size}, random);
      const OwnedTensor b = RandomTensor(dtype, {size}, random);
      OwnedTensor out = PoisonedTensor(dtype, {size});
      OwnedTensor expected(dtype, {size});
      for (int64_t i = 0; i < size; ++i) {
        Set(expected.tensor, i, Get(a.tensor, i) + Get(b.tensor, i));
      }
      Add(a.tensor, b.tensor, out.tensor);
      EXPECT_TRUE(BitwiseEqual(out.tensor, expected.tensor));
      Add(a.tensor, b.tensor, a.tensor);
      EXPECT_TRUE(BitwiseEqual(a.tensor, expected.tensor));
    }
  }
}

TEST(Elementwise, BroadcastRows) {
  TestRandom random;
  for (int64_t rows : {1, 3, 701}) {
    for (int64_t width : {1, 17, 130}) {
      const OwnedTensor bias = RandomTensor(DType::kF32, {width}, random);
      OwnedTensor y = PoisonedTensor(DType::kF32, {rows, width});
      BroadcastRows(bias.tensor, y.tensor);
      int64_t wrong = 0;
      for (int64_t i = 0; i < y.tensor.size(); ++i) {
        wrong += Get(y.tensor, i) == Get(bias.tensor, i % width) ? 0 : 1;
      }
      EXPECT_EQ(wrong, 0) << rows << " rows of " << width;
    }
  }
}

TEST(Elementwise, SumRowsAddsInRowOrder) {
  TestRandom random;
  for (int64_t rows : {1, 3, 701}) {
    for (int64_t width : {1, 17, 130, 300}) {
      SCOPED_TRACE(StrCat(rows, " rows of ", width));
      const OwnedTensor dy = RandomTensor(DType::kF32, {rows, width}, random);
      OwnedTensor dbias = RandomTensor(DType::kF32, {width}, random);
      OwnedTensor expected = Clone(dbias.tensor);
      for (int64_t c = 0; c < width; ++c) {
        float sum = 0;
        for (int64_t row = 0; row < rows; ++row) sum += dy.tensor.data<float>()[row * width + c];
        expected.tensor.data<float>()[c] += sum;
      }
      SumRows(dy.tensor, dbias.tensor, {});
      EXPECT_TRUE(BitwiseEqual(dbias.tensor, expected.tensor));
    }
  }
}

TEST(Elementwise, SameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  const OwnedTensor dy = RandomTensor(DType::kF32, {65, 1000}, random);
  OwnedTensor one(DType::kF32, {1000}), two(DType::kF32, {1000});
  WithThreads(1, [&] { SumRows(dy.tensor, one.tensor, {}); });
  WithThreads(2, [&] { SumRows(dy.tensor, two.tensor, {}); });
  EXPECT_TRUE(BitwiseEqual(one.tensor, two.tensor));
}

TEST(Elementwise, RejectsWrongShapes) {
  OwnedTensor a(DType::kF32, {3, 5}), b(DType::kF32, {5, 3}), bias(DType::kF32, {3});
  EXPECT_THROW(Add(a.tensor, b.tensor, a.tensor), Error);
  EXPECT_THROW(BroadcastRows(bias.tensor, a.tensor), Error);
  EXPECT_THROW(SumRows(a.tensor, bias.tensor, {}), Error);
}

}  // namespace
}  // namespace eyrie
