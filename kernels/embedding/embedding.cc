#include "kernels/embedding/embedding.h"

#include "kernels/dispatch.h"
#include "kernels/embedding/embedding_cpu.h"
#include "kernels/embedding/embedding_cuda.h"

namespace eyrie {
namespace {

// `rows` must hold a row of the table's width for each token.
void CheckInputs(const char* kernel, const Tensor& tokens, const Tensor& table, const char* name,
                 const Tensor& rows) {
  EYRIE_CHECK(tokens.defined(), kernel, ": tokens are absent");
  EYRIE_CHECK(table.defined() && table.shape.rank() == 2, kernel, ": the table must be [V, D]");
  EYRIE_CHECK(rows.defined() && rows.shape.rank() > 0, kernel, ": ", name, " is absent");
  CheckShape(kernel, name,
             rows.View({rows.size() / std::max<int64_t>(1, rows.dim(-1)), rows.dim(-1)}),
             {tokens.size(), table.dim(1)});
  CheckTypes(kernel, table, DType::kI32, {tokens});
}

}  // namespace

void EmbeddingForward(const EmbeddingForwardArgs& args) {
  constexpr const char* kKernel = "embedding_forward";
  CheckInputs(kKernel, args.tokens, args.table, "y", args.y);
  CheckTypes(kKernel, args.table, args.table.dtype, {args.y});
  const KernelScope timed("embedding", Moves({args.y, args.y}));
  EYRIE_DISPATCH_CUDA(args.table, EmbeddingForwardCuda(args));
  DispatchCpu(kKernel, args.table, [&]<class T>(T) { EmbeddingForwardCpu<T>(args); });
}

void EmbeddingBackward(const EmbeddingBackwardArgs& args) {
  constexpr const char* kKernel = "embedding_backward";
  CheckInputs(kKernel, args.tokens, args.dtable, "dy", args.dy);
  CheckTypes(kKernel, args.dy, FullPrecision(args.dy.dtype), {args.dtable});
  CheckWorkspace(kKernel, args.dy, args.workspace,
                 EmbeddingBackwardWorkspace(args.tokens, args.dtable));
  const KernelScope timed("embedding", Moves({args.dy, args.dy}));
  EYRIE_DISPATCH_CUDA(args.dtable, EmbeddingBackwardCuda(args));
  DispatchCpu(kKernel, args.dtable, [&]<class T>(T) { EmbeddingBackwardCpu<T>(args); });
}

int64_t EmbeddingBackwardWorkspace(const Tensor& tokens, const Tensor& dtable) {
  if (!IsGpu(dtable.device)) return 0;
  return EmbeddingWorkspace(tokens.size(), dtable.dim(1)).elements;
}

}  // namespace eyrie
