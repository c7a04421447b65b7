// Matrix products through BLAS, on row-major float32 or float64 matrices.
#pragma once

#include <cstdint>

namespace eyrie {

enum class Trans : bool { kNo, kYes };

// C[m, n] = alpha * op(A)[m, k] op(B)[k, n] + beta * C, each row-major with its leading dimension
// (the distance between rows, in elements). With beta = 0, C need not be initialised.
void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc);
void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, double alpha,
          const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
          int64_t ldc);

}  // namespace eyrie
