// Products on the GPU through cuBLASLt. An algorithm is chosen once for each kind of product, by
// cuBLASLt's own heuristics and not by timing, so that a run repeats bit by bit.
#include <cublasLt.h>

#include <array>
#include <map>
#include <memory>

#include "core/blas.h"
#include "core/cuda.h"
#include "core/few_rows.h"

namespace eyrie {
namespace {

void Check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) ThrowFailure(what, ": ", cublasLtGetStatusString(status));
}
#define EYRIE_CUBLAS_CHECK(call) Check(call, #call)

cudaDataType_t Convert(DType dtype) {
  switch (dtype) {
    case DType::kF32: return CUDA_R_32F;
    case DType::kBF16: return CUDA_R_16BF;
    default: ThrowFailure("no product on the GPU for ", Name(dtype));
  }
}

// cuBLASLt thinks in columns: a row-major matrix [rows, columns] is its [columns, rows].
class Layout {
 public:
  Layout(DType dtype, int64_t rows, int64_t columns, int64_t ld, int64_t batch, int64_t stride) {
    EYRIE_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(
        &layout_, Convert(dtype), static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), ld));
    if (batch == 1) return;
    const auto count = static_cast<int32_t>(batch);
    EYRIE_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                        &count, sizeof(count)));
    EYRIE_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(
        layout_, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)));
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

// One kind of product, ready to run.
class Plan {
 public:
  Plan(cublasLtHandle_t handle, const GemmArgs& args, uint32_t alignment)
      : a_(args.a.dtype, args.trans_a == Trans::kNo ? args.m : args.k,
           args.trans_a == Trans::kNo ? args.k : args.m, args.lda, args.batch, args.stride_a),
        b_(args.b.dtype, args.trans_b == Trans::kNo ? args.k : args.n,
           args.trans_b == Trans::kNo ? args.n : args.k, args.ldb, args.batch, args.stride_b),
        c_(args.c.dtype, args.m, args.n, args.ldc, args.batch, args.stride_c) {
    EYRIE_CUBLAS_CHECK(cublasLtMatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    // C^T = op(B)^T op(A)^T: the operands change places.
    Set(CUBLASLT_MATMUL_DESC_TRANSA, args.trans_b == Trans::kNo ? CUBLAS_OP_N : CUBLAS_OP_T);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, args.trans_a == Trans::kNo ? CUBLAS_OP_N : CUBLAS_OP_T);
    if (args.bias.defined()) {
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(Convert(args.bias.dtype)));
      if (args.batch > 1) Set(CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, args.n);
      SetBias(args);
    }

    cublasLtMatmulPreference_t preference = nullptr;
    EYRIE_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      EYRIE_CUBLAS_CHECK(
          cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kGemmWorkspaceCuda);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, description_, b_.get(), a_.get(), c_.get(), c_.get(),
                                       preference, 1, &result, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
      ThrowFailure("cuBLASLt has no algorithm for a product of ", args.m, " x ", args.n, " x ",
                   args.k, " in ", Name(args.a.dtype));
    }
    algorithm_ = result.algo;
  }
  ~Plan() { cublasLtMatmulDescDestroy(description_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void Run(cublasLtHandle_t handle, const GemmArgs& args, void* workspace) {
    if (args.bias.defined()) SetBias(args);
    const bool adds = args.accumulate || args.added.defined();
    const float alpha = 1.0f, beta = adds ? 1.0f : 0.0f;
    const void* from = args.added.defined() ? args.added.raw : args.c.raw;
    EYRIE_CUBLAS_CHECK(cublasLtMatmul(handle, description_, &alpha, args.b.raw, b_.get(),
                                      args.a.raw, a_.get(), &beta, from, c_.get(), args.c.raw,
                                      c_.get(), &algorithm_, workspace, kGemmWorkspaceCuda,
                                      ComputeStream()));
  }

 private:
  template <class Value>
  void Set(cublasLtMatmulDescAttributes_t attribute, Value value) {
    EYRIE_CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(description_, attribute, &value, sizeof(value)));
  }
  void SetBias(const GemmArgs& args) {
    Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(args.bias.raw));
  }

  Layout a_, b_, c_;
  cublasLtMatmulDesc_t description_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
};

// The bytes, up to 256, that every operand's address is a multiple of.
uint32_t Alignment(const GemmArgs& args) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(args.a.raw) |
                   reinterpret_cast<uintptr_t>(args.b.raw) |
                   reinterpret_cast<uintptr_t>(args.c.raw) | 256;
  for (const Tensor& optional : {args.bias, args.added}) {
    if (optional.defined()) bits |= reinterpret_cast<uintptr_t>(optional.raw);
  }
  return static_cast<uint32_t>(bits & (~bits + 1));
}

class Plans {
 public:
  Plans() {
    EYRIE_CUBLAS_CHECK(cublasLtCreate(&handle_));
    EYRIE_CUDA_CHECK(cudaMalloc(&workspace_, kGemmWorkspaceCuda));
  }

  void Run(const GemmArgs& args) {
    const uint32_t alignment = Alignment(args);
    const int64_t flags =
        (args.trans_a == Trans::kYes) | (args.trans_b == Trans::kYes) << 1 | args.accumulate << 2 |
        args.bias.defined() << 3 | static_cast<int64_t>(args.a.dtype) << 4 |
        static_cast<int64_t>(args.c.dtype) << 8 | static_cast<int64_t>(args.bias.dtype) << 12 |
        static_cast<int64_t>(alignment) << 16;
    const Key key{flags,    args.m,     args.n,        args.k,        args.lda,     args.ldb,
                  args.ldc, args.batch, args.stride_a, args.stride_b, args.stride_c};
    auto& plan = plans_[key];
    if (plan == nullptr) plan = std::make_unique<Plan>(handle_, args, alignment);
    plan->Run(handle_, args, workspace_);
  }

 private:
  using Key = std::array<int64_t, 11>;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace

void GemmCuda(std::span<const GemmArgs> products) {
  if (IsFewRows(products)) return FewRowsCuda(products);
  // One for the process, like its GPU; it lives until the process ends.
  static auto* plans = new Plans;
  for (const GemmArgs& args : products) {
    if (args.m == 0 || args.n == 0) continue;
    plans->Run(args);
  }
}

}  // namespace eyrie
