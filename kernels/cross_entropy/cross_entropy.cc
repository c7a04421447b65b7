#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_cpu.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

void CheckMatrix(const char* kernel, const Tensor& logits) {
  EYRIE_CHECK(logits.defined() && logits.shape.rank() == 2, kernel, ": logits must be [N, V]");
  EYRIE_CHECK(logits.dtype == FullPrecision(logits.dtype), kernel, ": logits hold ",
              Name(logits.dtype));
}
void CheckLogits(const char* kernel, const Tensor& logits, const Tensor& row_max) {
  CheckMatrix(kernel, logits);
  CheckShape(kernel, "row_max", row_max, {logits.dim(0)});
  CheckTypes(kernel, logits, logits.dtype, {row_max});
}

void CheckRows(const char* kernel, const Tensor& row_max) {
  EYRIE_CHECK(row_max.defined() && row_max.shape.rank() == 1, kernel, ": row_max must be [N]");
}

// What is kept for each of N tokens.
void CheckTokens(const char* kernel, const Tensor& row_max, const Tensor& labels,
                 const Tensor& partials) {
  const int64_t tokens = row_max.dim(0);
  CheckShape(kernel, "labels", labels, {tokens});
  CheckShape(kernel, "partials", partials, {2, tokens});
  CheckTypes(kernel, row_max, DType::kI32, {labels});
  CheckTypes(kernel, row_max, row_max.dtype, {partials});
}

}  // namespace

void SoftCap(const Tensor& logits, double soft_cap) {
  constexpr const char* kKernel = "soft_cap";
  CheckMatrix(kKernel, logits);
  EYRIE_CHECK(soft_cap > 0.0, kKernel, ": soft_cap ", soft_cap);
  const KernelScope timed("cross_entropy", Moves({logits, logits}));
  EYRIE_DISPATCH_CUDA(logits, SoftCapCuda(logits, soft_cap));
  DispatchCpu(kKernel, logits, [&]<class T>(T) { SoftCapCpu<T>(logits, soft_cap); });
}

void SoftmaxPartials(const SoftmaxPartialsArgs& args) {
  constexpr const char* kKernel = "softmax_partials";
  CheckLogits(kKernel, args.logits, args.row_max);
  CheckTokens(kKernel, args.row_max, args.labels, args.partials);
  const KernelScope timed("cross_entropy", Moves({args.logits}));
  EYRIE_DISPATCH_CUDA(args.logits, SoftmaxPartialsCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { SoftmaxPartialsCpu<T>(args); });
}

void RescalePartials(const Tensor& own_max, const Tensor& row_max, const Tensor& partials) {
  constexpr const char* kKernel = "rescale_partials";
  CheckRows(kKernel, row_max);
  CheckShape(kKernel, "own_max", own_max, row_max.shape);
  CheckShape(kKernel, "partials", partials, {2, row_max.size()});
  CheckTypes(kKernel, row_max, row_max.dtype, {own_max, partials});
  const KernelScope timed("cross_entropy", Moves({own_max, row_max, partials, partials}));
  EYRIE_DISPATCH_CUDA(row_max, RescalePartialsCuda(own_max, row_max, partials));
  DispatchCpu(kKernel, row_max,
              [&]<class T>(T) { RescalePartialsCpu<T>(own_max, row_max, partials); });
}

void RowArgmax(const RowArgmaxArgs& args) {
  constexpr const char* kKernel = "row_argmax";
  CheckLogits(kKernel, args.logits, args.row_max);
  CheckShape(kKernel, "predicted", args.predicted, {args.logits.dim(0)});
  CheckTypes(kKernel, args.logits, DType::kI32, {args.predicted});
  const KernelScope timed("cross_entropy", Moves({args.logits, args.row_max, args.predicted}));
  EYRIE_DISPATCH_CUDA(args.logits, RowArgmaxCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { RowArgmaxCpu<T>(args); });
}

void CrossEntropyLoss(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                      const Tensor& loss) {
  constexpr const char* kKernel = "cross_entropy_loss";
  CheckRows(kKernel, row_max);
  CheckTokens(kKernel, row_max, labels, partials);
  CheckShape(kKernel, "loss", loss, {2});
  CheckTypes(kKernel, row_max, DType::kF64, {loss});
  const KernelScope timed("cross_entropy", Moves({row_max, labels, partials}));
  EYRIE_DISPATCH_CUDA(row_max, CrossEntropyLossCuda(labels, row_max, partials, loss));
  DispatchCpu(kKernel, row_max,
              [&]<class T>(T) { CrossEntropyLossCpu<T>(labels, row_max, partials, loss); });
}

void CrossEntropyGrad(const CrossEntropyGradArgs& args) {
  constexpr const char* kKernel = "cross_entropy_grad";
  CheckLogits(kKernel, args.logits, args.row_max);
  CheckTokens(kKernel, args.row_max, args.labels, args.partials);
  CheckShape(kKernel, "dlogits", args.dlogits, args.logits.shape);
  CheckTypes(kKernel, args.dlogits, FullPrecision(args.dlogits.dtype), {args.logits});
  const KernelScope timed("cross_entropy", Moves({args.logits, args.dlogits}));
  EYRIE_DISPATCH_CUDA(args.logits, CrossEntropyGradCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { CrossEntropyGradCpu<T>(args); });
}

}  // namespace eyrie
