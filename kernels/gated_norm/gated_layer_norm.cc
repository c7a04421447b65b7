#include "kernels/gated_norm/gated_layer_norm.h"

#include "kernels/dispatch.h"
#include "kernels/gated_norm/gated_layer_norm_cpu.h"
#include "kernels/gated_norm/gated_layer_norm_cuda.h"
#include "kernels/norm/layer_norm_cuda.h"

namespace eyrie {
namespace {

// The inputs that both directions share.
template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  EYRIE_CHECK(
      args.x.defined() && args.x.shape.rank() >= 2 && args.x.dim(-1) > 0 && args.x.dim(-2) > 0,
      kernel, ": x has shape ", args.x.shape.ToString());
  EYRIE_CHECK(args.activation == Activation::kSilu || args.activation == Activation::kSigmoid,
              kernel, ": the gate's activation is neither SiLU nor sigmoid");
  const Shape group{args.x.dim(-2), args.x.dim(-1)};
  CheckShape(kernel, "weight", args.weight, group);
  CheckOptional(kernel, "skip", args.skip, group);
  EYRIE_CHECK(args.skip.defined() == args.s.defined(), kernel, ": one of skip and s is absent");
  CheckOptional(kernel, "s", args.s, args.x.shape);
  CheckShape(kernel, "gate", args.gate, args.x.shape);
  for (const Tensor& statistic : {args.mean, args.rstd}) {
    EYRIE_CHECK(statistic.defined() && statistic.size() == args.x.size() / group[1], kernel,
                ": mean or rstd has shape ", statistic.shape.ToString());
  }
  CheckTypes(kernel, args.x, args.x.dtype, {args.weight, args.skip, args.s, args.gate});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.mean, args.rstd});
}

}  // namespace

void GatedLayerNormForward(const GatedLayerNormForwardArgs& args) {
  const char* kernel = "GatedLayerNormForward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "out", args.out, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.out});
  const KernelScope timed("gated_norm");
  EYRIE_DISPATCH_CUDA(args.x, GatedLayerNormForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { GatedLayerNormForwardCpu<decltype(real)>(args); });
}

void GatedLayerNormBackward(const GatedLayerNormBackwardArgs& args) {
  const char* kernel = "GatedLayerNormBackward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "dout", args.dout, args.x.shape);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckShape(kernel, "dgate", args.dgate, args.x.shape);
  CheckShape(kernel, "dweight", args.dweight, args.weight.shape);
  if (args.skip.defined()) {
    CheckShape(kernel, "ds", args.ds, args.x.shape);
    CheckShape(kernel, "dskip", args.dskip, args.skip.shape);
  }
  CheckTypes(kernel, args.x, args.x.dtype, {args.dout, args.dx, args.ds, args.dgate});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dweight, args.dskip});
  CheckWorkspace(kernel, args.x, args.workspace,
                 GatedLayerNormBackwardWorkspace(args.x, args.skip));
  const KernelScope timed("gated_norm");
  EYRIE_DISPATCH_CUDA(args.x, GatedLayerNormBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { GatedLayerNormBackwardCpu<decltype(real)>(args); });
}

int64_t GatedLayerNormBackwardWorkspace(const Tensor& x, const Tensor& skip) {
  return (skip.defined() ? 2 : 1) * LayerNormBackwardWorkspace(x);
}

}  // namespace eyrie
