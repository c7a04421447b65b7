#include "core/blas.h"

#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

TEST(Gemm, AddsABiasAndAMatrix) {
  TestRandom random;
  constexpr int64_t kM = 5, kN = 7, kK = 3, kLd = 9;
  for (const auto& [with_bias, with_added] :
       {std::pair(false, true), std::pair(true, false), std::pair(true, true)}) {
    const OwnedTensor a = RandomTensor(DType::kF64, {kM, kK}, random);
    const OwnedTensor b = RandomTensor(DType::kF64, {kN, kK}, random);
    const OwnedTensor bias = RandomTensor(DType::kF64, {kN}, random);
    const OwnedTensor added = RandomTensor(DType::kF64, {kM, kLd}, random);
    const OwnedTensor c = RandomTensor(DType::kF64, {kM, kLd}, random);
    const OwnedTensor before = Cast(c.tensor, DType::kF64);
    Gemm({.trans_b = Trans::kYes,
          .m = kM,
          .n = kN,
          .k = kK,
          .a = a.tensor,
          .lda = kK,
          .b = b.tensor,
          .ldb = kK,
          .c = c.tensor,
          .ldc = kLd,
          .bias = with_bias ? bias.tensor : Tensor{},
          .added = with_added ? added.tensor : Tensor{}});
    const auto at = [](const OwnedTensor& tensor, int64_t i) {
      return tensor.tensor.data<double>()[i];
    };
    for (int64_t i = 0; i < kM; ++i) {
      for (int64_t j = 0; j < kLd; ++j) {
        double expected = at(before, i * kLd + j);
        if (j < kN) {
          expected = (with_added ? at(added, i * kLd + j) : 0.0) + (with_bias ? at(bias, j) : 0.0);
          for (int64_t k = 0; k < kK; ++k) expected += at(a, i * kK + k) * at(b, j * kK + k);
        }
        EXPECT_NEAR(at(c, i * kLd + j), expected, 1e-12) << i << " " << j;
      }
    }
  }
}

// Of products large enough that they are cut, in every orientation, and within wider matrices.
TEST(Gemm, KernelsProductsHaveTheSameBitsWithAnyNumberOfThreads) {
  TestRandom random;
  for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{64, 128, 64},
                                {33, 31, 300},
                                {130, 5, 700},
                                {1, 600, 600},
                                {517, 1, 900},
                                {70, 1100, 65},
                                {1, 1, 300000}}) {
    for (const Trans trans_a : {Trans::kNo, Trans::kYes}) {
      for (const Trans trans_b : {Trans::kNo, Trans::kYes}) {
        SCOPED_TRACE(StrCat(m, " x ", n, " x ", k, " ", trans_a == Trans::kYes, " ",
                            trans_b == Trans::kYes));
        const auto matrix = [&](int64_t rows, int64_t columns, Trans trans) {
          if (trans == Trans::kYes) std::swap(rows, columns);
          return RandomTensor(DType::kF32, {rows, columns + 3}, random);
        };
        const OwnedTensor a = matrix(m, k, trans_a), b = matrix(k, n, trans_b);
        const auto multiply = [&, &m = m, &n = n, &k = k](const Tensor& c) {
          Gemm(trans_a, trans_b, m, n, k, 0.5f, a.tensor.data<float>(), a.tensor.dim(1),
               b.tensor.data<float>(), b.tensor.dim(1), 2.0f, c.data<float>(), c.dim(1));
        };
        const OwnedTensor one = RandomTensor(DType::kF32, {m, n + 2}, random);
        const OwnedTensor three = Clone(one.tensor), team = Clone(one.tensor);
        // In double precision, element by element; and what so many products of these sizes come to
        // on average, against which sums that happen to cancel are judged.
        const OwnedTensor expected = Cast(one.tensor, DType::kF64);
        double squares = 0.0;
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (int64_t l = 0; l < k; ++l) {
              const double product =
                  Get(a.tensor, trans_a == Trans::kNo ? i * (k + 3) + l : l * (m + 3) + i) *
                  Get(b.tensor, trans_b == Trans::kNo ? l * (n + 3) + j : j * (k + 3) + l);
              sum += product;
              squares += 0.25 * product * product;
            }
            Set(expected.tensor, i * (n + 2) + j,
                2.0 * Get(one.tensor, i * (n + 2) + j) + 0.5 * sum);
          }
        }
        WithThreads(1, [&] { multiply(one.tensor); });
        WithThreads(3, [&] { multiply(three.tensor); });
        WithThreads(3, [&] {
          ParallelFor(3, [&](int64_t i) {
            if (i == 1) multiply(team.tensor);
          });
        });
        EXPECT_TRUE(BitwiseEqual(one.tensor, three.tensor));
        EXPECT_TRUE(BitwiseEqual(one.tensor, team.tensor));
        EXPECT_LT(RelativeError(one.tensor, expected.tensor, std::sqrt(squares)), 1e-5);
      }
    }
  }
}

}  // namespace
}  // namespace eyrie
