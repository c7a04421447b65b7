#include "kernels/gated_norm/gated_layer_norm.h"

#include "kernels/gated_norm/gated_layer_norm_cpu.h"
#include "kernels/gated_norm/gated_layer_norm_cuda.h"
#include "kernels/norm/layer_norm_cuda.h"

namespace eyrie {
namespace {

// The inputs that both directions share.
template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  CheckGroups(kernel, args.x, args.weight, args.mean, args.rstd);
  EYRIE_CHECK(args.activation == Activation::kSilu || args.activation == Activation::kSigmoid,
              kernel, ": the gate's activation is neither SiLU nor sigmoid");
  CheckOptional(kernel, "skip", args.skip, args.weight.shape);
  EYRIE_CHECK(args.skip.defined() == args.s.defined(), kernel, ": one of skip and s is absent");
  CheckOptional(kernel, "s", args.s, args.x.shape);
  CheckShape(kernel, "gate", args.gate, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.skip, args.s, args.gate});
}

}  // namespace

void GatedLayerNormForward(const GatedLayerNormForwardArgs& args) {
  const char* kernel = "GatedLayerNormForward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "out", args.out, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.out});
  const KernelScope timed("gated_norm", Moves({args.x, args.s, args.gate, args.out}));
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
  EYRIE_CHECK(!args.x_dx.defined() || args.x_dx.size() == args.x.size() / args.x.dim(-1), kernel,
              ": x_dx has shape ", args.x_dx.shape.ToString());
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dweight, args.dskip, args.x_dx});
  CheckWorkspace(kernel, args.x, args.workspace,
                 GatedLayerNormBackwardWorkspace(args.x, args.skip));
  const KernelScope timed(
      "gated_norm", Moves({args.x, args.s, args.gate, args.dout, args.dx, args.ds, args.dgate}));
  EYRIE_DISPATCH_CUDA(args.x, GatedLayerNormBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { GatedLayerNormBackwardCpu<decltype(real)>(args); });
}

int64_t GatedLayerNormBackwardWorkspace(const Tensor& x, const Tensor& skip) {
  return (skip.defined() ? 2 : 1) * LayerNormBackwardWorkspace(x);
}

}  // namespace eyrie
