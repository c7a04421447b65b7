#include "kernels/slstm/slstm.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/slstm/slstm_cpu.h"
#include "kernels/slstm/slstm_cuda.h"

namespace eyrie {
namespace {

// All of a state's tensors are there, or none of them; m is no part of a gradient.
void CheckState(const char* kernel, const char* name, const Tensor& x, const SlstmState& state,
                bool gradient) {
  const bool given = state.y.defined();
  EYRIE_CHECK(state.c.defined() == given && state.n.defined() == given &&
                  state.m.defined() == (given && !gradient),
              kernel, ": the tensors of ", name, " come together");
  for (const Tensor& tensor : {state.y, state.c, state.n, state.m}) {
    CheckOptional(kernel, name, tensor, {x.dim(0), x.dim(2), x.dim(4)});
    CheckTypes(kernel, x, FullPrecision(x.dtype), {tensor});
  }
}

// What both directions share.
template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  const Shape full = args.x.shape;
  EYRIE_CHECK(args.x.defined() && full.rank() == 5 && full.size() > 0 && full[3] == 4, kernel,
              ": x has shape ", full.ToString());
  const int64_t batch = full[0], tokens = full[1], heads = full[2], units = full[4];
  CheckShape(kernel, "r", args.r, {heads, units, 4, units});
  CheckShape(kernel, "bias", args.bias, {heads, 4, units});
  CheckShape(kernel, "positions", args.positions, {batch, tokens});
  CheckShape(kernel, "y", args.y, {batch, tokens, heads, units});
  CheckTypes(kernel, args.x, args.x.dtype, {args.r, args.y});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.bias});
  CheckTypes(kernel, args.x, DType::kI32, {args.positions});
  CheckState(kernel, "before", args.x, args.before, false);
}

// Of so many turns for each token, in each of which all units of a head are multiplied with one
// another.
KernelWork Work(const Tensor& x, int64_t turns, std::initializer_list<Tensor> moved) {
  return {.bytes = BytesOf(moved),
          .products = 2.0 * static_cast<double>(turns * x.size()) * static_cast<double>(x.dim(4)),
          .turns = static_cast<double>(turns * x.dim(1))};
}

}  // namespace

void SlstmForward(const SlstmForwardArgs& args) {
  const char* kernel = "SlstmForward";
  CheckInputs(kernel, args);
  CheckState(kernel, "after", args.x, args.after, false);
  CheckWorkspace(kernel, args.x, args.workspace, SlstmForwardWorkspace(args.x));
  const KernelScope timed("slstm", Work(args.x, 1, {args.x, args.y}));
  EYRIE_DISPATCH_CUDA(args.x, SlstmForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { SlstmForwardCpu<decltype(real)>(args); });
}

int64_t SlstmForwardWorkspace(const Tensor& x) {
  return IsGpu(x.device) ? 3 * x.dim(0) * x.dim(2) * x.dim(4) : 0;  // SlstmForwardView::cells
}

void SlstmBackward(const SlstmBackwardArgs& args) {
  const char* kernel = "SlstmBackward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "dy", args.dy, args.y.shape);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckShape(kernel, "dr", args.dr, args.r.shape);
  CheckShape(kernel, "dbias", args.dbias, args.bias.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dy, args.dx});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dr, args.dbias});
  CheckState(kernel, "dafter", args.x, args.dafter, true);
  CheckState(kernel, "dbefore", args.x, args.dbefore, true);
  CheckWorkspace(kernel, args.x, args.workspace, SlstmBackwardWorkspace(args.x));
  // A token's gradient depends on the next one's; the weights' products are as many again, and a
  // turn takes twice as long.
  const KernelScope timed("slstm", Work(args.x, 2, {args.x, args.y, args.dy, args.dx}));
  EYRIE_DISPATCH_CUDA(args.x, SlstmBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { SlstmBackwardCpu<decltype(real)>(args); });
}

int64_t SlstmBackwardWorkspace(const Tensor& x) {
  if (!IsGpu(x.device)) return 0;
  const Tensor dx = x.View({x.dim(0) * x.dim(1), x.size() / (x.dim(0) * x.dim(1))});
  return std::max(SlstmBackwardScratch(x).total, SumRowsWorkspace(dx));
}

}  // namespace eyrie
