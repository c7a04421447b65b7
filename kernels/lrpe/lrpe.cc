#include "kernels/lrpe/lrpe.h"

#include "kernels/dispatch.h"
#include "kernels/lrpe/lrpe_cpu.h"
#include "kernels/lrpe/lrpe_cuda.h"

namespace eyrie {
namespace {

// `y` is y or dy.
template <class Args>
void CheckInputs(const char* kernel, const Args& args, const Tensor& y) {
  Shape shape = args.x.shape;
  EYRIE_CHECK(args.x.defined() && shape.rank() == 4, kernel, ": x has shape ", shape.ToString());
  CheckOptional(kernel, "theta", args.theta, {shape[2], shape[3]});
  CheckShape(kernel, "positions", args.positions, {shape[0], shape[1]});
  if (args.theta.defined()) shape.Set(3, 2 * shape[3]);
  CheckShape(kernel, "y", y, shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.theta, y});
  CheckTypes(kernel, args.x, DType::kI32, {args.positions});
}

}  // namespace

void LrpeForward(const LrpeForwardArgs& args) {
  const char* kernel = "LrpeForward";
  CheckInputs(kernel, args, args.y);
  const KernelScope timed("lrpe", Moves({args.x, args.y}));
  EYRIE_DISPATCH_CUDA(args.x, LrpeForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { LrpeForwardCpu<decltype(real)>(args); });
}

void LrpeBackward(const LrpeBackwardArgs& args) {
  const char* kernel = "LrpeBackward";
  CheckInputs(kernel, args, args.dy);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  EYRIE_CHECK(args.dtheta.defined() == args.theta.defined(), kernel,
              ": theta and dtheta come together");
  CheckOptional(kernel, "dtheta", args.dtheta, {args.x.dim(2), args.x.dim(3)});
  CheckTypes(kernel, args.x, args.x.dtype, {args.dx});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dtheta});
  CheckWorkspace(kernel, args.x, args.workspace, LrpeBackwardWorkspace(args.x, args.theta));
  const KernelScope timed("lrpe", Moves({args.x, args.dy, args.dx}));
  EYRIE_DISPATCH_CUDA(args.x, LrpeBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { LrpeBackwardCpu<decltype(real)>(args); });
}

int64_t LrpeBackwardWorkspace(const Tensor& x, const Tensor& theta) {
  return IsGpu(x.device) && theta.defined() ? LrpeTokenBlocks(x) * theta.size() : 0;
}

}  // namespace eyrie
