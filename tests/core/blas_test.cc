#include "core/blas.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace eyrie
