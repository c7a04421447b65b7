#include "core/blas.h"

#include <cblas.h>

#include <algorithm>

#include "core/device.h"
#include "core/error.h"
#include "core/kernel_times.h"
#include "core/round.h"
#include "core/threads.h"

namespace eyrie {
namespace {

CBLAS_TRANSPOSE Convert(Trans trans) { return trans == Trans::kYes ? CblasTrans : CblasNoTrans; }

blasint Narrow(int64_t value) {
  const auto narrow = static_cast<blasint>(value);
  EYRIE_CHECK(narrow == value && value >= 0, "matrix extent ", value, " is beyond BLAS");
  return narrow;
}

void Multiply(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, float alpha,
              const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
              int64_t ldc) {
  cblas_sgemm(CblasRowMajor, Convert(trans_a), Convert(trans_b), Narrow(m), Narrow(n), Narrow(k),
              alpha, a, Narrow(lda), b, Narrow(ldb), beta, c, Narrow(ldc));
}
void Multiply(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, double alpha,
              const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
              int64_t ldc) {
  cblas_dgemm(CblasRowMajor, Convert(trans_a), Convert(trans_b), Narrow(m), Narrow(n), Narrow(k),
              alpha, a, Narrow(lda), b, Narrow(ldb), beta, c, Narrow(ldc));
}

// On some CPUs the last bits of OpenBLAS's sums depend on how many threads share a product. Here
// one thread takes a product of at most kOfOneThread multiplications, as OpenBLAS lets it too, or
// each of a few parts of its rows or columns: OpenBLAS starts no threads in those of a team.
constexpr int64_t kOfOneThread = int64_t{1} << 18;
template <class T>
void InPieces(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a,
              int64_t lda, const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const bool rows = m >= n;
  const int64_t extent = rows ? m : n, size_of_all = m * n * k;
  if (size_of_all <= kOfOneThread || extent == 1) {
    return Multiply(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
  // Every part packs the other operand anew: they are few, unless the product is large.
  const int64_t pieces = std::clamp<int64_t>(size_of_all / (8 * kOfOneThread), 2, 8);
  constexpr int64_t kUnit = 32;  // rows and columns that suit OpenBLAS's kernels
  const int64_t even = CeilDiv(extent, pieces);
  const int64_t piece = extent <= pieces * kUnit ? even : RoundUp(even, kUnit);
  ParallelFor(CeilDiv(extent, piece), [&](int64_t index) {
    const int64_t first = index * piece, size = std::min(piece, extent - first);
    if (rows) {
      const T* part = a + first * (trans_a == Trans::kNo ? lda : 1);
      Multiply(trans_a, trans_b, size, n, k, alpha, part, lda, b, ldb, beta, c + first * ldc, ldc);
    } else {
      const T* part = b + first * (trans_b == Trans::kNo ? 1 : ldb);
      Multiply(trans_a, trans_b, m, size, k, alpha, a, lda, part, ldb, beta, c + first, ldc);
    }
  });
}

template <class T>
void GemmCpu(const GemmArgs& args) {
  const T* added = args.added.data<T>();
  const bool fills = added != nullptr || args.bias.defined();  // C, which products then add to
  for (int64_t i = 0; i < args.batch; ++i) {
    T* c = args.c.data<T>() + i * args.stride_c;
    if (fills) {
      const T* bias = args.bias.defined() ? args.bias.data<T>() + i * args.n : nullptr;
      ParallelFor(args.m, [&](int64_t row) {
        const int64_t first = row * args.ldc;
        for (int64_t j = 0; j < args.n; ++j) {
          const T constant = bias != nullptr ? bias[j] : T(0);
          c[first + j] = added != nullptr ? added[first + j] + constant : constant;
        }
      });
    }
    Multiply(args.trans_a, args.trans_b, args.m, args.n, args.k, T(1),
             args.a.data<T>() + i * args.stride_a, args.lda, args.b.data<T>() + i * args.stride_b,
             args.ldb, fills || args.accumulate ? T(1) : T(0), c, args.ldc);
  }
}

// Elements that a matrix of `rows` x `columns` spans, and `batch` of them.
void CheckSpan(const char* name, const Tensor& tensor, int64_t rows, int64_t columns, int64_t ld,
               int64_t batch, int64_t stride) {
  const int64_t last = (batch - 1) * stride + (rows - 1) * ld + columns;
  EYRIE_CHECK(tensor.defined() && ld >= columns && (rows == 0 || last <= tensor.size()),
              "Gemm: ", name, " ", tensor.shape.ToString(), " does not hold ", batch, " x ", rows,
              " x ", columns, " at ", ld);
}

void Check(const GemmArgs& args) {
  const auto check = [&](const char* name, const Tensor& tensor, Trans trans, int64_t rows,
                         int64_t columns, int64_t ld, int64_t stride) {
    if (trans == Trans::kYes) std::swap(rows, columns);
    CheckSpan(name, tensor, rows, columns, ld, args.batch, stride);
  };
  check("A", args.a, args.trans_a, args.m, args.k, args.lda, args.stride_a);
  check("B", args.b, args.trans_b, args.k, args.n, args.ldb, args.stride_b);
  check("C", args.c, Trans::kNo, args.m, args.n, args.ldc, args.stride_c);
  EYRIE_CHECK(!args.bias.defined() || (!args.accumulate && args.bias.size() == args.batch * args.n),
              "Gemm: bias");
  if (args.added.defined()) {
    check("added", args.added, Trans::kNo, args.m, args.n, args.ldc, args.stride_c);
    EYRIE_CHECK(!args.accumulate && args.batch == 1 && args.added.dtype == args.c.dtype &&
                    args.added.device == args.c.device && args.added.raw != args.c.raw,
                "Gemm: added");
  }
  EYRIE_CHECK(args.a.dtype == args.b.dtype && args.a.device == args.b.device &&
                  args.a.device == args.c.device,
              "Gemm: A, B and C do not go together");
}

KernelWork WorkOf(const GemmArgs& args) {
  const double m = static_cast<double>(args.batch * args.m), n = static_cast<double>(args.n),
               k = static_cast<double>(args.k);
  const double inputs =
      (m * k + static_cast<double>(args.batch) * k * n) * static_cast<double>(SizeOf(args.a.dtype));
  const double passes = args.accumulate || args.added.defined() ? 2.0 : 1.0;
  return {.bytes = inputs + passes * m * n * static_cast<double>(SizeOf(args.c.dtype)),
          .products = 2.0 * m * n * k};
}

}  // namespace

void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, float alpha,
          const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
          int64_t ldc) {
  InPieces(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void Gemm(Trans trans_a, Trans trans_b, int64_t m, int64_t n, int64_t k, double alpha,
          const double* a, int64_t lda, const double* b, int64_t ldb, double beta, double* c,
          int64_t ldc) {
  InPieces(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void Gemm(const GemmArgs& args) { Gemm(std::span(&args, 1)); }

void Gemm(std::span<const GemmArgs> products) {
  for (const GemmArgs& args : products) Check(args);
  const Device device = products.front().a.device;
  KernelWork work;
  for (const GemmArgs& args : products) work.Add(WorkOf(args));
  const KernelScope timed(kGemmKernels, work);
  if (IsMeta(device)) return;
  if constexpr (kCudaBuild) {
    if (device == Device::kCuda) return GemmCuda(products);
  }
  for (const GemmArgs& args : products) {
    if (args.m == 0 || args.n == 0) continue;
    EYRIE_CHECK(args.a.device == Device::kCpu && args.c.dtype == args.a.dtype, "Gemm on the CPU");
    if (args.a.dtype == DType::kF64) {
      GemmCpu<double>(args);
    } else {
      GemmCpu<float>(args);
    }
  }
}

}  // namespace eyrie
