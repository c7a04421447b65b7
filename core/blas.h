// Matrix products through BLAS: OpenBLAS on the CPU, cuBLASLt on a GPU, where products of few rows
// have a kernel of their own.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace eyrie {

enum class Trans : bool { kNo, kYes };

// C[m, n] = op(A)[m, k] op(B)[k, n] + bias + added, or C += op(A) op(B). Matrices are row-major and
// start where their tensor starts, whatever its shape; ld is the distance between their rows, in
// elements. On the CPU all are float32 or all float64. On a GPU A and B are both bfloat16 or both
// float32, C like them or float32, and products are summed in float32.
struct GemmArgs {
  Trans trans_a = Trans::kNo, trans_b = Trans::kNo;
  int64_t m = 0, n = 0, k = 0;
  Tensor a;
  int64_t lda = 0;
  Tensor b;
  int64_t ldb = 0;
  Tensor c;
  int64_t ldc = 0;
  bool accumulate = false;
  Tensor bias;   // [batch, n] like C, added to every row of C; optional, not with accumulate
  Tensor added;  // a matrix laid out like C, elsewhere; optional, not with accumulate or a batch
  // So many products at once, whose matrices start `stride` elements apart.
  int64_t batch = 1;
  int64_t stride_a = 0, stride_b = 0, stride_c = 0;
  // B is a parameter, which nothing writes that was given to the GPU since the last copy, or kernel
  // that did not start early (core/early_launch.cuh): it may be read before that has ended.
  bool b_is_settled = false;
};
void Gemm(const GemmArgs& args);
// Products none of which reads or writes what another one writes. A GPU may run them together.
void Gemm(std::span<const GemmArgs> products);

// The same for kernels' CPU bodies, on host memory and with a factor each:
// C = alpha op(A) op(B) + beta C. With beta = 0, C need not be initialised. The bits of C do not
// depend on the number of threads, nor on whether the caller is one of a team.
void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc);
void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, double alpha,
          const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
          int64_t ldc);

// The body of a CUDA build: products of few rows by core/few_rows.cu, others by cuBLASLt.
void GemmCuda(std::span<const GemmArgs> products);
// Scratch that all products of a process share, in bytes.
inline constexpr size_t kGemmWorkspaceCuda = size_t{32} << 20;
inline size_t GemmWorkspaceBytes(Device device) { return IsGpu(device) ? kGemmWorkspaceCuda : 0; }

}  // namespace eyrie
