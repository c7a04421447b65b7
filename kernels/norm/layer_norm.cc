#include "kernels/norm/layer_norm.h"

#include "kernels/dispatch.h"
#include "kernels/norm/layer_norm_cpu.h"
#include "kernels/norm/layer_norm_cuda.h"

namespace eyrie {
namespace {

// The inputs that both directions share.
template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  EYRIE_CHECK(
      args.x.defined() && args.x.shape.rank() >= 2 && args.x.dim(-1) > 0 && args.x.dim(-2) > 0,
      kernel, ": x has shape ", args.x.shape.ToString());
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1);
  CheckShape(kernel, "weight", args.weight, {groups, width});
  for (const Tensor& statistic : {args.mean, args.rstd}) {
    EYRIE_CHECK(statistic.defined() && statistic.size() == args.x.size() / width, kernel,
                ": mean or rstd has shape ", statistic.shape.ToString());
  }
  CheckTypes(kernel, args.x, args.x.dtype, {args.weight});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.mean, args.rstd});
}

}  // namespace

void LayerNormForward(const LayerNormForwardArgs& args) {
  const char* kernel = "LayerNormForward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "y", args.y, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.y});
  EYRIE_DISPATCH_CUDA(args.x, LayerNormForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { LayerNormForwardCpu<decltype(real)>(args); });
}

void LayerNormBackward(const LayerNormBackwardArgs& args) {
  const char* kernel = "LayerNormBackward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "dy", args.dy, args.x.shape);
  CheckOptional(kernel, "dresidual", args.dresidual, args.x.shape);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckShape(kernel, "dweight", args.dweight, args.weight.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dy, args.dresidual, args.dx});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dweight});
  CheckWorkspace(kernel, args.x, args.workspace, LayerNormBackwardWorkspace(args.x));
  EYRIE_DISPATCH_CUDA(args.x, LayerNormBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { LayerNormBackwardCpu<decltype(real)>(args); });
}

int64_t LayerNormBackwardWorkspace([[maybe_unused]] const Tensor& x) {
  EYRIE_DISPATCH_CUDA(x, LayerNormBackwardWorkspaceCuda(x));
  return 0;
}

}  // namespace eyrie
