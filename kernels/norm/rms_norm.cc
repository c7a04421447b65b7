#include "kernels/norm/rms_norm.h"

#include "kernels/dispatch.h"
#include "kernels/norm/rms_norm_cpu.h"
#include "kernels/norm/rms_norm_cuda.h"

namespace eyrie {
namespace {

// The inputs that both directions share.
template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  EYRIE_CHECK(args.x.defined() && args.x.shape.rank() >= 1, kernel, ": x is absent");
  const int64_t width = args.x.dim(-1);
  EYRIE_CHECK(width > 0, kernel, ": x has shape ", args.x.shape.ToString());
  CheckOptional(kernel, "weight", args.weight, {width});
  EYRIE_CHECK(args.rstd.defined() && args.rstd.size() == args.x.size() / width, kernel,
              ": rstd has shape ", args.rstd.shape.ToString());
  CheckTypes(kernel, args.x, args.x.dtype, {args.weight});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.rstd});
}

}  // namespace

void RmsNormForward(const RmsNormForwardArgs& args) {
  const char* kernel = "RmsNormForward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "y", args.y, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.y});
  const KernelScope timed("norm", Moves({args.x, args.y}));
  EYRIE_DISPATCH_CUDA(args.x, RmsNormForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { RmsNormForwardCpu<decltype(real)>(args); });
}

void RmsNormBackward(const RmsNormBackwardArgs& args) {
  const char* kernel = "RmsNormBackward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "dy", args.dy, args.x.shape);
  CheckOptional(kernel, "dresidual", args.dresidual, args.x.shape);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  EYRIE_CHECK(args.dweight.defined() == args.weight.defined(), kernel,
              ": weight and dweight come together");
  CheckOptional(kernel, "dweight", args.dweight, args.weight.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dy, args.dresidual, args.dx});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dweight});
  if (args.weight.defined()) {
    CheckWorkspace(kernel, args.x, args.workspace, RmsNormBackwardWorkspace(args.x));
  }
  const KernelScope timed("norm", Moves({args.x, args.dy, args.dresidual, args.dx}));
  EYRIE_DISPATCH_CUDA(args.x, RmsNormBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { RmsNormBackwardCpu<decltype(real)>(args); });
}

int64_t RmsNormBackwardWorkspace(const Tensor& x) {
  const int64_t width = x.dim(-1);
  return IsGpu(x.device) ? RmsNormBackwardBlocks(x.size() / width, width) * width : 0;
}

}  // namespace eyrie
