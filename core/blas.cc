#include "core/blas.h"

#include <cblas.h>

#include "core/error.h"

namespace eyrie {
namespace {

CBLAS_TRANSPOSE Convert(Trans trans) { return trans == Trans::kYes ? CblasTrans : CblasNoTrans; }

blasint Narrow(int64_t value) {
  const auto narrow = static_cast<blasint>(value);
  EYRIE_CHECK(narrow == value && value >= 0, "matrix extent ", value, " is beyond BLAS");
  return narrow;
}

}  // namespace

void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc) {
  cblas_sgemm(CblasRowMajor, Convert(trans_a), Convert(trans_b), Narrow(m), Narrow(n), Narrow(k),
              alpha, a, Narrow(lda), b, Narrow(ldb), beta, c, Narrow(ldc));
}

void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, double alpha,
          const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
          int64_t ldc) {
  cblas_dgemm(CblasRowMajor, Convert(trans_a), Convert(trans_b), Narrow(m), Narrow(n), Narrow(k),
              alpha, a, Narrow(lda), b, Narrow(ldb), beta, c, Narrow(ldc));
}

}  // namespace eyrie
