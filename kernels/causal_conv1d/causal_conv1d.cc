#include "kernels/causal_conv1d/causal_conv1d.h"

#include "kernels/causal_conv1d/causal_conv1d_cpu.h"
#include "kernels/causal_conv1d/causal_conv1d_cuda.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

constexpr int64_t kMaxTaps = 8;

// The inputs that both directions share. Returns the shape of the state, [B, K-1, C].
template <class Args>
Shape CheckInputs(const char* kernel, const Args& args) {
  const Shape full = args.x.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": x has shape ", full.ToString());
  EYRIE_CHECK(args.weight.shape.rank() == 2, kernel, ": weight has shape ",
              args.weight.shape.ToString());
  const int64_t batch = full[0], time = full[1], channels = full[2], taps = args.weight.dim(0);
  EYRIE_CHECK(taps >= 1 && taps <= kMaxTaps, kernel, ": ", taps, " taps");
  const Shape state{batch, taps - 1, channels};
  CheckShape(kernel, "x", args.x, full);
  CheckShape(kernel, "weight", args.weight, {taps, channels});
  CheckShape(kernel, "positions", args.positions, {batch, time});
  CheckOptional(kernel, "x0", args.x0, state);
  CheckTypes(kernel, args.x, args.x.dtype, {args.weight, args.x0});
  CheckTypes(kernel, args.x, DType::kI32, {args.positions});
  return state;
}

}  // namespace

int64_t CausalConv1dBackwardWorkspace(const Tensor& x, int64_t taps) {
  if (!IsGpu(x.device)) return 0;
  const int span = causal_conv1d::Span(x.dim(0), x.dim(1), x.dim(2));
  return x.dim(0) * causal_conv1d::TimeBlocks(x.dim(1), span) * (taps + 2) * x.dim(2);
}

void CausalConv1dForward(const CausalConv1dForwardArgs& args) {
  const char* kernel = "CausalConv1dForward";
  const Shape state = CheckInputs(kernel, args);
  CheckShape(kernel, "bias", args.bias, {state[2]});
  CheckShape(kernel, "y", args.y, args.x.shape);
  CheckOptional(kernel, "x_last", args.x_last, state);
  CheckTypes(kernel, args.x, args.x.dtype, {args.bias, args.y, args.x_last});
  const KernelScope timed("causal_conv1d", Moves({args.x, args.y}));
  EYRIE_DISPATCH_CUDA(args.x, CausalConv1dForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { CausalConv1dForwardCpu<decltype(real)>(args); });
}

void CausalConv1dBackward(const CausalConv1dBackwardArgs& args) {
  const char* kernel = "CausalConv1dBackward";
  const Shape state = CheckInputs(kernel, args);
  CheckShape(kernel, "dy", args.dy, args.x.shape);
  CheckOptional(kernel, "dx_last", args.dx_last, state);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckOptional(kernel, "dx0", args.dx0, state);
  CheckShape(kernel, "dweight", args.dweight, args.weight.shape);
  CheckShape(kernel, "dbias", args.dbias, {state[2]});
  CheckOptional(kernel, "dx_sum", args.dx_sum, {state[2]});
  if (args.silu) CheckShape(kernel, "bias", args.bias, {state[2]});
  CheckTypes(kernel, args.x, args.x.dtype, {args.dy, args.dx_last, args.dx, args.dx0, args.bias});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dweight, args.dbias, args.dx_sum});
  CheckWorkspace(kernel, args.x, args.workspace,
                 CausalConv1dBackwardWorkspace(args.x, args.weight.dim(0)));
  const KernelScope timed("causal_conv1d", Moves({args.x, args.dy, args.dx}));
  EYRIE_DISPATCH_CUDA(args.x, CausalConv1dBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { CausalConv1dBackwardCpu<decltype(real)>(args); });
}

}  // namespace eyrie
