#include "kernels/norm/layer_norm.h"

#include "kernels/norm/group_statistics.h"
#include "kernels/norm/layer_norm_cpu.h"
#include "kernels/norm/layer_norm_cuda.h"

namespace eyrie {

void LayerNormForward(const LayerNormForwardArgs& args) {
  const char* kernel = "LayerNormForward";
  CheckGroups(kernel, args.x, args.weight, args.mean, args.rstd);
  CheckShape(kernel, "y", args.y, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.y});
  const KernelScope timed("norm", Moves({args.x, args.y}));
  EYRIE_DISPATCH_CUDA(args.x, LayerNormForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { LayerNormForwardCpu<decltype(real)>(args); });
}

void LayerNormBackward(const LayerNormBackwardArgs& args) {
  const char* kernel = "LayerNormBackward";
  CheckGroups(kernel, args.x, args.weight, args.mean, args.rstd);
  CheckShape(kernel, "dy", args.dy, args.x.shape);
  CheckOptional(kernel, "dresidual", args.dresidual, args.x.shape);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckShape(kernel, "dweight", args.dweight, args.weight.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dy, args.dresidual, args.dx});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dweight});
  CheckWorkspace(kernel, args.x, args.workspace, LayerNormBackwardWorkspace(args.x));
  const KernelScope timed("norm", Moves({args.x, args.dy, args.dresidual, args.dx}));
  EYRIE_DISPATCH_CUDA(args.x, LayerNormBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { LayerNormBackwardCpu<decltype(real)>(args); });
}

int64_t LayerNormBackwardWorkspace(const Tensor& x) {
  return IsGpu(x.device) ? LayerNormStripes(x) * x.dim(-2) * x.dim(-1) : 0;
}

}  // namespace eyrie
