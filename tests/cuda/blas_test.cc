#include "core/blas.h"

#include <vector>

#include "core/tensor_math.h"
#include "tests/cuda/cuda_test_util.h"

namespace eyrie {
namespace {

struct Sizes {
  int64_t m, n, k, batch;
};

// One product on the GPU in `dtype`, and the same rounded numbers in float64 on the CPU.
void ExpectAgrees(const Sizes& size, DType dtype, DType out, Trans trans_a, Trans trans_b,
                  bool accumulate, bool bias, TestRandom& random, bool added = false) {
  SCOPED_TRACE(StrCat(size.m, " x ", size.n, " x ", size.k, " x ", size.batch, " ", Name(dtype),
                      " -> ", Name(out), trans_a == Trans::kYes, trans_b == Trans::kYes, accumulate,
                      bias, added));
  const auto draw = [&](int64_t rows, int64_t columns, DType type) {
    return Rounded(RandomTensor(DType::kF32, {size.batch, rows, columns}, random).tensor, type);
  };
  const bool ta = trans_a == Trans::kYes, tb = trans_b == Trans::kYes;
  const OwnedTensor a = ta ? draw(size.k, size.m, dtype) : draw(size.m, size.k, dtype);
  const OwnedTensor b = tb ? draw(size.n, size.k, dtype) : draw(size.k, size.n, dtype);
  const OwnedTensor c = draw(size.m, size.n, out), row = draw(1, size.n, out);
  const OwnedTensor more = draw(size.m, size.n, out), gmore = ToCuda(more.tensor, out);
  const OwnedTensor ga = ToCuda(a.tensor, dtype), gb = ToCuda(b.tensor, dtype);
  const OwnedTensor grow = ToCuda(row.tensor, out);
  const OwnedTensor gc =
      accumulate ? ToCuda(c.tensor, out) : PoisonedCuda(out, {size.batch, size.m, size.n});
  GemmArgs args{.trans_a = trans_a,
                .trans_b = trans_b,
                .m = size.m,
                .n = size.n,
                .k = size.k,
                .a = a.tensor,
                .lda = ta ? size.m : size.k,
                .b = b.tensor,
                .ldb = tb ? size.k : size.n,
                .c = c.tensor,
                .ldc = size.n,
                .accumulate = accumulate,
                .bias = bias ? row.tensor : Tensor{},
                .added = added ? more.tensor : Tensor{},
                .batch = size.batch,
                .stride_a = size.m * size.k,
                .stride_b = size.k * size.n,
                .stride_c = size.m * size.n};
  Gemm(args);
  args.a = ga.tensor;
  args.b = gb.tensor;
  args.c = gc.tensor;
  if (bias) args.bias = grow.tensor;
  if (added) args.added = gmore.tensor;
  Gemm(args);
  EXPECT_LT(RelativeError(ToHost(gc.tensor).tensor, c.tensor), out == DType::kBF16 ? 4e-3 : 1e-5);
}

TEST(CudaGemm, AgreesWithTheCpu) {
  TestRandom random;
  for (const Sizes& size : {Sizes{64, 96, 128, 1}, Sizes{5, 7, 3, 1}, Sizes{130, 48, 33, 4},
                            Sizes{1, 256, 512, 1}, Sizes{512, 128, 128, 8}}) {
    for (const DType dtype : kCudaTypes) {
      for (const Trans trans_a : {Trans::kNo, Trans::kYes}) {
        for (const Trans trans_b : {Trans::kNo, Trans::kYes}) {
          ExpectAgrees(size, dtype, dtype, trans_a, trans_b, false, false, random);
          ExpectAgrees(size, dtype, dtype, trans_a, trans_b, false, true, random);
          ExpectAgrees(size, dtype, DType::kF32, trans_a, trans_b, true, false, random);
          if (size.batch > 1) continue;
          ExpectAgrees(size, dtype, dtype, trans_a, trans_b, false, false, random, /*added=*/true);
          ExpectAgrees(size, dtype, dtype, trans_a, trans_b, false, true, random, /*added=*/true);
        }
      }
    }
  }
}

// What the kernel for few rows takes, all sizes odd where it allows, and what it must leave alone:
// 17 rows, columns that are no whole vectors, products that differ in k or in C's type.
struct Few {
  int64_t m, k;
  std::vector<int64_t> n;
  int64_t batch = 1;
  int64_t gap = 0;  // elements between the rows of A and B
  bool unlike = false;
};

void ExpectTogetherAgree(const Few& few, DType out, bool accumulate, bool bias, bool settled,
                         TestRandom& random, bool added = false) {
  SCOPED_TRACE(StrCat(few.m, " x ", few.n.front(), " (of ", few.n.size(), ") x ", few.k, " x ",
                      few.batch, " -> ", Name(out), accumulate, bias, settled, added));
  constexpr DType kType = DType::kBF16;
  const auto draw = [&](Shape shape, DType type) {
    return Rounded(RandomTensor(DType::kF32, shape, random).tensor, type);
  };
  // Blocks lie side by side in the rows of A and C.
  const int64_t lda = few.batch * few.k + few.gap, ldb = few.k + few.gap;
  const OwnedTensor a = draw({few.m, lda}, kType), there_a = ToCuda(a.tensor, kType);
  std::vector<OwnedTensor> host, there;  // what the products view
  std::vector<GemmArgs> on_host, on_gpu;
  for (size_t i = 0; i < few.n.size(); ++i) {
    const int64_t n = few.n[i], k = few.unlike && i == 1 ? few.k / 2 : few.k;
    GemmArgs args{.trans_b = Trans::kYes,
                  .m = few.m,
                  .n = n,
                  .k = k,
                  .a = a.tensor,
                  .lda = lda,
                  .ldb = ldb,
                  .ldc = few.batch * n,
                  .accumulate = accumulate,
                  .batch = few.batch,
                  .stride_a = few.k,
                  .stride_b = n * ldb,
                  .stride_c = n,
                  .b_is_settled = settled};
    GemmArgs gpu = args;
    gpu.a = there_a.tensor;
    const auto both = [&](OwnedTensor tensor, DType type, Tensor GemmArgs::*member) {
      host.push_back(std::move(tensor));
      there.push_back(ToCuda(host.back().tensor, type));
      args.*member = host.back().tensor;
      gpu.*member = there.back().tensor;
    };
    both(draw({few.batch, n, ldb}, kType), kType, &GemmArgs::b);
    both(draw({few.m, few.batch * n}, out), out, &GemmArgs::c);
    if (bias) both(draw({few.batch, n}, out), out, &GemmArgs::bias);
    if (added) both(draw({few.m, few.batch * n}, out), out, &GemmArgs::added);
    on_host.push_back(args);
    on_gpu.push_back(gpu);
  }
  std::vector<OwnedTensor> before;
  for (const GemmArgs& args : on_gpu) {
    before.push_back(OwnedTensor(args.c.dtype, args.c.shape, Device::kCuda));
    Copy(args.c, before.back().tensor);
  }
  Gemm(on_host);
  Gemm(on_gpu);
  for (size_t i = 0; i < few.n.size(); ++i) {
    const OwnedTensor first = ToHost(on_gpu[i].c);
    EXPECT_LT(RelativeError(first.tensor, on_host[i].c), out == DType::kBF16 ? 4e-3 : 1e-5) << i;
    Copy(before[i].tensor, on_gpu[i].c);
    Gemm(on_gpu[i]);
    // Alone as together; a kernel of cuBLASLt may be another one.
    EXPECT_LT(RelativeError(ToHost(on_gpu[i].c).tensor, first.tensor),
              out == DType::kBF16 ? 4e-3 : 1e-5);
  }
}

TEST(CudaGemm, FewRowsAgreeWithTheCpu) {
  TestRandom random;
  for (const Few& few :
       {Few{1, 8, {1}}, Few{1, 2048, {128, 128, 130}}, Few{3, 40, {7, 33}}, Few{8, 1032, {17}},
        Few{9, 2560, {64, 100, 3, 5}}, Few{16, 160, {160, 160}, 4}, Few{2, 160, {161, 20}, 3, 24},
        Few{5, 6144, {2048}}, Few{1, 2048, {6144, 6144}}, Few{2, 256, {5001}},
        Few{17, 64, {33, 20}}, Few{4, 33, {20, 20}}, Few{4, 64, {24, 32}, 2, 3},
        Few{3, 64, {32, 48}, 1, 0, true}}) {
    for (const bool settled : {false, true}) {
      ExpectTogetherAgree(few, DType::kBF16, false, true, settled, random);
      ExpectTogetherAgree(few, DType::kF32, false, false, settled, random);
      ExpectTogetherAgree(few, DType::kF32, true, false, settled, random);
      if (few.batch > 1) continue;
      ExpectTogetherAgree(few, DType::kBF16, false, true, settled, random, /*added=*/true);
    }
  }
}

// Neither of few rows nor of many, and next to products that are something.
TEST(CudaGemm, ProductsWithoutRowsOrColumnsAreNothing) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    const OwnedTensor a = ToCuda(RandomTensor(DType::kF32, {5, 64}, random).tensor, dtype);
    const OwnedTensor b = ToCuda(RandomTensor(DType::kF32, {7, 64}, random).tensor, dtype);
    const OwnedTensor c = ToCuda(RandomTensor(DType::kF32, {5, 7}, random).tensor, dtype);
    const OwnedTensor before = ToHost(c.tensor);
    GemmArgs no_rows{.trans_b = Trans::kYes,
                     .n = 7,
                     .k = 64,
                     .a = a.tensor,
                     .lda = 64,
                     .b = b.tensor,
                     .ldb = 64,
                     .c = c.tensor,
                     .ldc = 7};
    GemmArgs no_columns = no_rows;
    no_columns.m = 5;
    no_columns.n = 0;
    for (const GemmArgs& args : {no_rows, no_columns}) {
      Gemm(args);
      EXPECT_TRUE(BitwiseEqual(ToHost(c.tensor).tensor, before.tensor));
    }
    const OwnedTensor expected = PoisonedCuda(dtype, {5, 7});
    GemmArgs whole = no_columns;
    whole.n = 7;
    whole.c = expected.tensor;
    Gemm(whole);
    whole.c = c.tensor;
    Gemm(std::vector{no_columns, whole});
    EXPECT_TRUE(BitwiseEqual(ToHost(c.tensor).tensor, ToHost(expected.tensor).tensor));
  }
}

TEST(CudaGemm, FewRowsRepeatBitByBit) {
  TestRandom random;
  const OwnedTensor a = ToCuda(RandomTensor(DType::kF32, {3, 2560}, random).tensor, DType::kBF16);
  const OwnedTensor b =
      ToCuda(RandomTensor(DType::kF32, {2048, 2560}, random).tensor, DType::kBF16);
  OwnedTensor c[2] = {PoisonedCuda(DType::kF32, {3, 2048}), PoisonedCuda(DType::kF32, {3, 2048})};
  for (const OwnedTensor& to : c) {
    Gemm({.trans_b = Trans::kYes,
          .m = 3,
          .n = 2048,
          .k = 2560,
          .a = a.tensor,
          .lda = 2560,
          .b = b.tensor,
          .ldb = 2560,
          .c = to.tensor,
          .ldc = 2048});
  }
  EXPECT_TRUE(BitwiseEqual(ToHost(c[0].tensor).tensor, ToHost(c[1].tensor).tensor));
}

TEST(CudaTensorMath, KeepsTheTail) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    for (const int64_t width : {5, 128}) {
      for (const int64_t tokens : {1, 3, 40, 41, 90}) {
        const OwnedTensor before = RandomTensor(DType::kF32, {3, 40, width}, random);
        const OwnedTensor now = RandomTensor(DType::kF32, {3, tokens, width}, random);
        const OwnedTensor there_now = ToCuda(now.tensor, dtype);
        const OwnedTensor there_before = ToCuda(before.tensor, dtype);
        const OwnedTensor there = PoisonedCuda(dtype, {3, 40, width});
        for (const bool first : {false, true}) {
          KeepTail(first ? Tensor{} : there_before.tensor, there_now.tensor, there.tensor);
          // Row by row.
          const OwnedTensor expected(DType::kF32, {3, 40, width});
          for (int64_t row = 0; row < 40; ++row) {
            const int64_t from = row + tokens;
            if (from >= 40) {
              CopyRows(now.tensor, from - 40, expected.tensor, row, 1);
            } else if (!first) {
              CopyRows(before.tensor, from, expected.tensor, row, 1);
            }
          }
          EXPECT_TRUE(
              BitwiseEqual(ToHost(there.tensor).tensor, Rounded(expected.tensor, dtype).tensor));
        }
      }
    }
  }
}

TEST(CudaTensorMath, AgreesWithTheCpu) {
  TestRandom random;
  for (const DType dtype : kCudaTypes) {
    const OwnedTensor from = Cast(RandomTensor(DType::kF32, {3, 7, 5}, random).tensor, dtype);
    const OwnedTensor to = Cast(RandomTensor(DType::kF32, {3, 9, 5}, random).tensor, dtype);
    const OwnedTensor there = ToCuda(to.tensor, dtype);
    AddRows(ToCuda(from.tensor, dtype).tensor, 2, there.tensor, 4, 3);
    AddRows(from.tensor, 2, to.tensor, 4, 3);
    EXPECT_EQ(RelativeError(ToHost(there.tensor).tensor, Cast(to.tensor, DType::kF64).tensor), 0);
  }
  const OwnedTensor factor = RandomTensor(DType::kF32, {1001}, random);
  const OwnedTensor addend = RandomTensor(DType::kF32, {1001}, random);
  const OwnedTensor state = RandomTensor(DType::kF32, {1001}, random);
  const OwnedTensor there = ToCuda(state.tensor);
  MultiplyAdd(ToCuda(factor.tensor).tensor, ToCuda(addend.tensor).tensor, there.tensor);
  MultiplyAdd(factor.tensor, addend.tensor, state.tensor);
  EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, Cast(state.tensor, DType::kF64).tensor),
            1e-6);

  // A factor for each 91 elements.
  const OwnedTensor few = RandomTensor(DType::kF32, {11}, random);
  MultiplyAdd(ToCuda(few.tensor).tensor, ToCuda(addend.tensor).tensor, there.tensor);
  MultiplyAdd(few.tensor, addend.tensor, state.tensor);
  EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, Cast(state.tensor, DType::kF64).tensor),
            1e-6);

  // And a weight.
  const OwnedTensor weight = RandomTensor(DType::kF32, {11}, random);
  MultiplyAdd(ToCuda(few.tensor).tensor, ToCuda(addend.tensor).tensor, there.tensor,
              ToCuda(weight.tensor).tensor);
  MultiplyAdd(few.tensor, addend.tensor, state.tensor, weight.tensor);
  EXPECT_LT(RelativeError(ToHost(there.tensor).tensor, Cast(state.tensor, DType::kF64).tensor),
            1e-6);

  const OwnedTensor m = RandomTensor(DType::kF32, {11}, random), m_there = ToCuda(m.tensor);
  const OwnedTensor keep(DType::kF32, {11}), add(DType::kF32, {11});
  const OwnedTensor keep_there = ZeroCuda(DType::kF32, {11}),
                    add_there = ZeroCuda(DType::kF32, {11});
  StabiliseSum(ToCuda(few.tensor).tensor, ToCuda(weight.tensor).tensor, m_there.tensor,
               keep_there.tensor, add_there.tensor);
  StabiliseSum(few.tensor, weight.tensor, m.tensor, keep.tensor, add.tensor);
  for (const auto& [on_gpu, on_cpu] :
       {std::pair{&m_there, &m}, {&keep_there, &keep}, {&add_there, &add}}) {
    EXPECT_LT(
        RelativeError(ToHost(on_gpu->tensor).tensor, Cast(on_cpu->tensor, DType::kF64).tensor),
        1e-6);
  }
  Fill(there.tensor, -1e30);
  Fill(state.tensor, -1e30);
  EXPECT_TRUE(BitwiseEqual(ToHost(there.tensor).tensor, Cast(state.tensor, DType::kF64).tensor));

  const OwnedTensor rounded = ZeroCuda(DType::kBF16, {1001}), host(DType::kBF16, {1001});
  Convert(ToCuda(factor.tensor).tensor, rounded.tensor);
  Convert(factor.tensor, host.tensor);
  EXPECT_EQ(RelativeError(ToHost(rounded.tensor).tensor, Cast(host.tensor, DType::kF64).tensor), 0);
}

}  // namespace
}  // namespace eyrie
