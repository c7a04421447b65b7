// CUDA bodies of the elementwise operations against the CPU's in float64.
#include "kernels/elementwise/elementwise.h"

#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

TEST(CudaElementwise, Add) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (int64_t size : {1, 7, 33, 2048, 100003}) {
      SCOPED_TRACE(StrCat(Name(dtype), " size ", size));
      const OwnedTensor a = RandomTensor(DType::kF32, {size + 1}, random);
      const OwnedTensor b = RandomTensor(DType::kF32, {size + 1}, random);
      const OwnedTensor expected(DType::kF64, {size + 1});
      Add(Rounded(a.tensor, dtype).tensor, Rounded(b.tensor, dtype).tensor, expected.tensor);
      const OwnedTensor left = ToCuda(a.tensor, dtype), right = ToCuda(b.tensor, dtype);
      // From the start of the memory, and from where vectors do not fit.
      for (int64_t begin : {0, 1}) {
        const OwnedTensor out = PoisonedCuda(dtype, {size + 1});
        const auto part = [&](const OwnedTensor& t) { return t.tensor.Rows(begin, begin + size); };
        Add(part(left), part(right), part(out));
        EXPECT_LT(RelativeError(ToHost(part(out)).tensor, part(expected)), Tolerance(dtype));
        const OwnedTensor whole = ToHost(out.tensor);  // and nothing beside it
        EXPECT_TRUE(std::isnan(Get(whole.tensor, begin == 0 ? size : 0)));
      }
      Add(left.tensor, right.tensor, left.tensor);
      EXPECT_LT(RelativeError(ToHost(left.tensor).tensor, expected.tensor), Tolerance(dtype));
    }
  }
}

TEST(CudaElementwise, RowsAndTheirSums) {
  TestRandom random;
  for (DType dtype : kCudaTypes) {
    for (int64_t rows : {1, 3, 701}) {
      for (int64_t width : {1, 5, 64, 130, 264, 2048}) {
        SCOPED_TRACE(StrCat(Name(dtype), " ", rows, " rows of ", width));
        const OwnedTensor row = RandomTensor(DType::kF32, {width}, random);
        const OwnedTensor y = RandomTensor(DType::kF32, {rows, width}, random);
        const OwnedTensor exact_row = Rounded(row.tensor, dtype), exact = Rounded(y.tensor, dtype);
        const OwnedTensor row_there = ToCuda(row.tensor, dtype), there = ToCuda(y.tensor, dtype);

        const OwnedTensor sums = RandomTensor(DType::kF32, {width}, random);
        const OwnedTensor expected_sums = Cast(sums.tensor, DType::kF64);
        SumRows(exact.tensor, expected_sums.tensor, {});
        const OwnedTensor workspace = PoisonedCuda(DType::kF32, {SumRowsWorkspace(there.tensor)});
        const OwnedTensor one = ToCuda(sums.tensor), two = ToCuda(sums.tensor);
        for (const OwnedTensor* result : {&one, &two}) {
          SumRows(there.tensor, result->tensor, workspace.tensor);
        }
        EXPECT_LT(RelativeError(ToHost(one.tensor).tensor, expected_sums.tensor, 1), 1e-5);
        EXPECT_TRUE(BitwiseEqual(ToHost(one.tensor).tensor, ToHost(two.tensor).tensor));

        AddRow(exact_row.tensor, exact.tensor);
        AddRow(row_there.tensor, there.tensor);
        EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, exact.tensor), Tolerance(dtype));
        BroadcastRows(exact_row.tensor, exact.tensor);
        const OwnedTensor filled = PoisonedCuda(dtype, {rows, width});
        BroadcastRows(row_there.tensor, filled.tensor);
        EXPECT_EQ(RelativeError(ToHost(filled.tensor).tensor, exact.tensor), 0.0);
      }
    }
  }
}

TEST(CudaElementwise, SumsOfManyRows) {
  TestRandom random;
  const OwnedTensor dy = RandomTensor(DType::kBF16, {40001, 24}, random);
  const OwnedTensor there = ToCuda(dy.tensor), sums = ZeroCuda(DType::kF32, {24});
  const OwnedTensor workspace = PoisonedCuda(DType::kF32, {SumRowsWorkspace(there.tensor)});
  SumRows(there.tensor, sums.tensor, workspace.tensor);
  const OwnedTensor expected(DType::kF64, {24});
  SumRows(Cast(dy.tensor, DType::kF64).tensor, expected.tensor, {});
  EXPECT_LT(RelativeError(ToHost(sums.tensor).tensor, expected.tensor), 1e-5);
}

TEST(CudaElementwise, RefusesWrongTypes) {
  const OwnedTensor narrow = ZeroCuda(DType::kBF16, {3, 5}), wide = ZeroCuda(DType::kF32, {3, 5});
  const OwnedTensor here(DType::kF32, {3, 5}), sums = ZeroCuda(DType::kBF16, {5});
  const OwnedTensor workspace = ZeroCuda(DType::kF32, {1000});
  EXPECT_THROW(Add(narrow.tensor, wide.tensor, wide.tensor), Error);
  EXPECT_THROW(Add(wide.tensor, here.tensor, wide.tensor), Error);
  EXPECT_THROW(SumRows(narrow.tensor, sums.tensor, workspace.tensor), Error);
  EXPECT_THROW(SumRows(narrow.tensor, ZeroCuda(DType::kF32, {5}).tensor, {}), Error);
}

}  // namespace
}  // namespace eyrie
