#include "kernels/rg_lru/rg_lru.h"

#include "kernels/dispatch.h"
#include "kernels/rg_lru/rg_lru_cpu.h"

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
}

// What both summaries share.
template <class Args>
void CheckSummary(const char* kernel, const Args& args, const Shape& full) {
  CheckShape(kernel, "lambda", args.lambda, {full[2]});
  CheckShape(kernel, "positions", args.positions, {full[0], full[1]});
  CheckShape(kernel, "decay", args.decay, {full[0], full[2]});
  CheckShape(kernel, "increment", args.increment, {full[0], full[2]});
}

}  // namespace

void RgLruForward(const RgLruForwardArgs& args) {
  const char* kernel = "RgLruForward";
  CheckInputs(kernel, args);
  CheckOptional(kernel, "h_last", args.h_last, {args.u.dim(0), args.u.dim(2)});
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
  DispatchCpu(kernel, args.u, [&](auto real) { RgLruBackwardCpu<decltype(real)>(args); });
}

void RgLruSummary(const RgLruSummaryArgs& args) {
  const char* kernel = "RgLruSummary";
  const Shape full = args.u.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": u has shape ", full.ToString());
  CheckShape(kernel, "u", args.u, full);
  CheckShape(kernel, "zi", args.zi, full);
  CheckShape(kernel, "zr", args.zr, full);
  CheckSummary(kernel, args, full);
  DispatchCpu(kernel, args.u, [&](auto real) { RgLruSummaryCpu<decltype(real)>(args); });
}

void RgLruGradSummary(const RgLruGradSummaryArgs& args) {
  const char* kernel = "RgLruGradSummary";
  const Shape full = args.dh.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": dh has shape ", full.ToString());
  CheckShape(kernel, "zr", args.zr, full);
  CheckShape(kernel, "dh", args.dh, full);
  CheckSummary(kernel, args, full);
  DispatchCpu(kernel, args.dh, [&](auto real) { RgLruGradSummaryCpu<decltype(real)>(args); });
}

}  // namespace eyrie
