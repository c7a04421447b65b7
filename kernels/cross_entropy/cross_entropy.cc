#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_cpu.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

// The number of tokens N of logits [N, V].
int64_t CheckLogits(const char* kernel, const Tensor& logits, const Tensor& row_max) {
  EYRIE_CHECK(logits.defined() && logits.shape.rank() == 2, kernel, ": logits must be [N, V]");
  CheckShape(kernel, "row_max", row_max, {logits.dim(0)});
  return logits.dim(0);
}

// What is kept for each of N tokens.
void CheckTokens(const char* kernel, int64_t tokens, const Tensor& labels, const Tensor& partials) {
  CheckShape(kernel, "labels", labels, {tokens});
  CheckShape(kernel, "partials", partials, {2, tokens});
}

}  // namespace

void SoftCapRowMax(const SoftCapRowMaxArgs& args) {
  constexpr const char* kKernel = "soft_cap_row_max";
  CheckLogits(kKernel, args.logits, args.row_max);
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { SoftCapRowMaxCpu<T>(args); });
}

void SoftmaxPartials(const SoftmaxPartialsArgs& args) {
  constexpr const char* kKernel = "softmax_partials";
  const int64_t tokens = CheckLogits(kKernel, args.logits, args.row_max);
  CheckTokens(kKernel, tokens, args.labels, args.partials);
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { SoftmaxPartialsCpu<T>(args); });
}

void CrossEntropyLoss(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                      const Tensor& loss) {
  constexpr const char* kKernel = "cross_entropy_loss";
  EYRIE_CHECK(row_max.defined() && row_max.shape.rank() == 1, kKernel, ": row_max must be [N]");
  CheckTokens(kKernel, row_max.dim(0), labels, partials);
  CheckShape(kKernel, "loss", loss, {2});
  CheckTypes(kKernel, row_max, DType::kF64, {loss});
  DispatchCpu(kKernel, row_max,
              [&]<class T>(T) { CrossEntropyLossCpu<T>(labels, row_max, partials, loss); });
}

void CrossEntropyGrad(const CrossEntropyGradArgs& args) {
  constexpr const char* kKernel = "cross_entropy_grad";
  const int64_t tokens = CheckLogits(kKernel, args.logits, args.row_max);
  CheckTokens(kKernel, tokens, args.labels, args.partials);
  CheckShape(kKernel, "dlogits", args.dlogits, args.logits.shape);
  DispatchCpu(kKernel, args.logits, [&]<class T>(T) { CrossEntropyGradCpu<T>(args); });
}

}  // namespace eyrie
