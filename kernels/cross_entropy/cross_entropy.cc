#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_cpu.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

void CheckLogits(const char* kernel, const Tensor& logits, const Tensor& row_max) {
  EYRIE_CHECK(logits.defined() && logits.shape.rank() == 2, kernel, ": logits must be [N, V]");
  CheckShape(kernel, "row_max", row_max, {logits.dim(0)});
  EYRIE_CHECK(logits.dtype == FullPrecision(logits.dtype), kernel, ": logits hold ",
              Name(logits.dtype));
  CheckTypes(kernel, logits, logits.dtype, {row_max});
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

void SoftCapRowMax(const SoftCapRowMaxArgs& args) {
  constexpr const char* kKernel = "soft_cap_row_max";
  CheckLogits(kKernel, args.logits, args.row_max);
  const KernelScope timed("cross_entropy");
  EYRIE_DISPATCH_CUDA(args.logits, SoftCapRowMaxCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { SoftCapRowMaxCpu<T>(args); });
}

void RowArgmax(const RowArgmaxArgs& args) {
  constexpr const char* kKernel = "row_argmax";
  CheckLogits(kKernel, args.logits, args.row_max);
  CheckShape(kKernel, "predicted", args.predicted, {args.logits.dim(0)});
  CheckTypes(kKernel, args.logits, DType::kI32, {args.predicted});
  EYRIE_DISPATCH_CUDA(args.logits, RowArgmaxCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { RowArgmaxCpu<T>(args); });
}

void SoftmaxPartials(const SoftmaxPartialsArgs& args) {
  constexpr const char* kKernel = "softmax_partials";
  CheckLogits(kKernel, args.logits, args.row_max);
  CheckTokens(kKernel, args.row_max, args.labels, args.partials);
  const KernelScope timed("cross_entropy");
  EYRIE_DISPATCH_CUDA(args.logits, SoftmaxPartialsCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { SoftmaxPartialsCpu<T>(args); });
}

void CrossEntropyLoss(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                      const Tensor& loss) {
  constexpr const char* kKernel = "cross_entropy_loss";
  EYRIE_CHECK(row_max.defined() && row_max.shape.rank() == 1, kKernel, ": row_max must be [N]");
  CheckTokens(kKernel, row_max, labels, partials);
  CheckShape(kKernel, "loss", loss, {2});
  CheckTypes(kKernel, row_max, DType::kF64, {loss});
  const KernelScope timed("cross_entropy");
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
  const KernelScope timed("cross_entropy");
  EYRIE_DISPATCH_CUDA(args.logits, CrossEntropyGradCuda(args));
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { CrossEntropyGradCpu<T>(args); });
}

}  // namespace eyrie
