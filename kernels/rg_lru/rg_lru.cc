#include "kernels/rg_lru/rg_lru.h"

#include "kernels/dispatch.h"
#include "kernels/rg_lru/rg_lru_cpu.h"
#include "kernels/rg_lru/rg_lru_cuda.h"
#include "kernels/rg_lru/rg_lru_plan.h"

namespace eyrie {
namespace {

// The inputs that both directions share.
template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  const Shape full = args.u.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": u has shape ", full.ToString());
  const int64_t batch = full[0], time = full[1], channels = full[2];
  CheckShape(kernel, "u", args.u, full);
  CheckShape(kernel, "zi", args.zi, full);
  CheckShape(kernel, "zr", args.zr, full);
  CheckShape(kernel, "lambda", args.lambda, {channels});
  CheckShape(kernel, "positions", args.positions, {batch, time});
  CheckOptional(kernel, "h0", args.h0, {batch, channels});
  CheckShape(kernel, "h", args.h, full);
  const DType type = args.u.dtype;
  CheckTypes(kernel, args.u, type, {args.zi, args.zr, args.h});
  CheckTypes(kernel, args.u, DType::kI32, {args.positions});
  CheckTypes(kernel, args.u, FullPrecision(type), {args.lambda, args.h0});
}

// What both summaries share; `main` is u or dh.
template <class Args>
void CheckSummary(const char* kernel, const Args& args, const Tensor& main) {
  const Shape full = main.shape;
  CheckShape(kernel, "lambda", args.lambda, {full[2]});
  CheckShape(kernel, "positions", args.positions, {full[0], full[1]});
  CheckShape(kernel, "decay", args.decay, {full[0], full[2]});
  CheckShape(kernel, "increment", args.increment, {full[0], full[2]});
  CheckTypes(kernel, main, main.dtype, {args.zr});
  CheckTypes(kernel, main, DType::kI32, {args.positions});
  CheckTypes(kernel, main, FullPrecision(main.dtype), {args.lambda, args.decay, args.increment});
  CheckWorkspace(kernel, main, args.workspace, RgLruSummaryWorkspace(main));
}

}  // namespace

int64_t RgLruForwardWorkspace(const Tensor& u) {
  return IsGpu(u.device) ? rg_lru::ForwardWorkspace(u.shape) : 0;
}
int64_t RgLruBackwardWorkspace(const Tensor& u) {
  return IsGpu(u.device) ? rg_lru::BackwardWorkspace(u.shape) : 0;
}
int64_t RgLruSummaryWorkspace(const Tensor& u) {
  return IsGpu(u.device) ? rg_lru::SummaryWorkspace(u.shape) : 0;
}

void RgLruForward(const RgLruForwardArgs& args) {
  const char* kernel = "RgLruForward";
  CheckInputs(kernel, args);
  CheckOptional(kernel, "h_last", args.h_last, {args.u.dim(0), args.u.dim(2)});
  CheckTypes(kernel, args.u, FullPrecision(args.u.dtype), {args.h_last});
  CheckWorkspace(kernel, args.u, args.workspace, RgLruForwardWorkspace(args.u));
  const KernelScope timed("rg_lru", Moves({args.u, args.zi, args.zr, args.h}));
  EYRIE_DISPATCH_CUDA(args.u, RgLruForwardCuda(args));
  DispatchCpu(kernel, args.u, [&](auto real) { RgLruForwardCpu<decltype(real)>(args); });
}

void RgLruBackward(const RgLruBackwardArgs& args) {
  const char* kernel = "RgLruBackward";
  CheckInputs(kernel, args);
  const Shape full = args.u.shape;
  const Shape state{full[0], full[2]};
  CheckShape(kernel, "dh", args.dh, full);
  CheckOptional(kernel, "dh_last", args.dh_last, state);
  CheckShape(kernel, "du", args.du, full);
  CheckShape(kernel, "dzi", args.dzi, full);
  CheckShape(kernel, "dzr", args.dzr, full);
  CheckOptional(kernel, "dh0", args.dh0, state);
  CheckShape(kernel, "dlambda", args.dlambda, {full[2]});
  CheckOptional(kernel, "dzi_sum", args.dzi_sum, {full[2]});
  CheckOptional(kernel, "dzr_sum", args.dzr_sum, {full[2]});
  CheckTypes(kernel, args.u, args.u.dtype, {args.dh, args.du, args.dzi, args.dzr});
  CheckTypes(kernel, args.u, FullPrecision(args.u.dtype),
             {args.dh_last, args.dh0, args.dlambda, args.dzi_sum, args.dzr_sum});
  CheckWorkspace(kernel, args.u, args.workspace, RgLruBackwardWorkspace(args.u));
  const KernelScope timed(
      "rg_lru", Moves({args.u, args.zi, args.zr, args.h, args.dh, args.du, args.dzi, args.dzr}));
  EYRIE_DISPATCH_CUDA(args.u, RgLruBackwardCuda(args));
  DispatchCpu(kernel, args.u, [&](auto real) { RgLruBackwardCpu<decltype(real)>(args); });
}

void RgLruSummary(const RgLruSummaryArgs& args) {
  const char* kernel = "RgLruSummary";
  const Shape full = args.u.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": u has shape ", full.ToString());
  CheckShape(kernel, "u", args.u, full);
  CheckShape(kernel, "zi", args.zi, full);
  CheckShape(kernel, "zr", args.zr, full);
  CheckTypes(kernel, args.u, args.u.dtype, {args.zi});
  CheckSummary(kernel, args, args.u);
  const KernelScope timed("rg_lru", Moves({args.u, args.zi, args.zr}));
  EYRIE_DISPATCH_CUDA(args.u, RgLruSummaryCuda(args));
  DispatchCpu(kernel, args.u, [&](auto real) { RgLruSummaryCpu<decltype(real)>(args); });
}

void RgLruGradSummary(const RgLruGradSummaryArgs& args) {
  const char* kernel = "RgLruGradSummary";
  const Shape full = args.dh.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": dh has shape ", full.ToString());
  CheckShape(kernel, "zr", args.zr, full);
  CheckShape(kernel, "dh", args.dh, full);
  CheckSummary(kernel, args, args.dh);
  const KernelScope timed("rg_lru", Moves({args.zr, args.dh}));
  EYRIE_DISPATCH_CUDA(args.dh, RgLruGradSummaryCuda(args));
  DispatchCpu(kernel, args.dh, [&](auto real) { RgLruGradSummaryCpu<decltype(real)>(args); });
}

}  // namespace eyrie
