#include "kernels/selective_scan/selective_scan.h"

#include "kernels/dispatch.h"
#include "kernels/selective_scan/selective_scan_cpu.h"
#include "kernels/selective_scan/selective_scan_cuda.h"
#include "kernels/selective_scan/selective_scan_plan.h"

namespace eyrie {
namespace {

constexpr int64_t kMaxStates = 64;

// The inputs that all kernels share; `main` is x or dout. Returns the shape of the state.
template <class Args>
Shape CheckInputs(const char* kernel, const Args& args, const Tensor& main) {
  const Shape full = main.shape;
  EYRIE_CHECK(full.rank() == 3, kernel, ": the activations have shape ", full.ToString());
  const int64_t batch = full[0], time = full[1], channels = full[2];
  const Shape rates = args.a_log.shape;
  EYRIE_CHECK(rates.rank() == 2 && rates[1] >= 1 && rates[1] <= kMaxStates, kernel,
              ": a_log has shape ", rates.ToString(), ", expected 1 to ", kMaxStates, " states");
  const int64_t states = rates[1];
  EYRIE_CHECK(args.bc.shape.rank() == 3 && args.bc.dim(2) >= 2 * states, kernel, ": bc has shape ",
              args.bc.shape.ToString());
  CheckShape(kernel, "dt", args.dt, full);
  CheckShape(kernel, "bc", args.bc, {batch, time, args.bc.dim(2)});
  CheckShape(kernel, "a_log", args.a_log, {channels, states});
  CheckShape(kernel, "dt_bias", args.dt_bias, {channels});
  CheckShape(kernel, "positions", args.positions, {batch, time});
  CheckTypes(kernel, main, main.dtype, {main, args.dt, args.bc});
  CheckTypes(kernel, main, FullPrecision(main.dtype), {args.a_log, args.dt_bias});
  CheckTypes(kernel, main, DType::kI32, {args.positions});
  return {batch, channels, states};
}

// What the two passes share beyond that.
template <class Args>
Shape CheckPass(const char* kernel, const Args& args) {
  const Shape state = CheckInputs(kernel, args, args.x);
  CheckShape(kernel, "x", args.x, args.x.shape);
  CheckShape(kernel, "z", args.z, args.x.shape);
  CheckShape(kernel, "skip", args.skip, {args.x.dim(2)});
  CheckOptional(kernel, "h0", args.h0, state);
  CheckTypes(kernel, args.x, args.x.dtype, {args.z});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.skip, args.h0});
  return state;
}

template <class Args>
void CheckSummary(const char* kernel, const Args& args, const Tensor& main) {
  const Shape state = CheckInputs(kernel, args, main);
  CheckShape(kernel, "decay", args.decay, state);
  CheckShape(kernel, "increment", args.increment, state);
  CheckTypes(kernel, main, FullPrecision(main.dtype), {args.decay, args.increment});
  CheckWorkspace(kernel, main, args.workspace, SelectiveScanSummaryWorkspace(main, state[2]));
}

// Of so many steps for each token, channel and state.
KernelWork Work(const Tensor& x, int64_t states, int64_t steps,
                std::initializer_list<Tensor> moved) {
  return {.bytes = BytesOf(moved), .scans = static_cast<double>(x.size() * states * steps)};
}

}  // namespace

int64_t SelectiveScanForwardWorkspace(const Tensor& x, int64_t states) {
  return IsGpu(x.device) ? selective_scan::ForwardWorkspace(x.shape, states) : 0;
}
int64_t SelectiveScanBackwardWorkspace(const Tensor& x, int64_t states) {
  return IsGpu(x.device) ? selective_scan::BackwardWorkspace(x.shape, states) : 0;
}
int64_t SelectiveScanSummaryWorkspace(const Tensor& x, int64_t states) {
  return IsGpu(x.device) ? selective_scan::SummaryWorkspace(x.shape, states) : 0;
}

void SelectiveScanForward(const SelectiveScanForwardArgs& args) {
  const char* kernel = "SelectiveScanForward";
  const Shape state = CheckPass(kernel, args);
  CheckShape(kernel, "out", args.out, args.x.shape);
  CheckOptional(kernel, "h_last", args.h_last, state);
  CheckTypes(kernel, args.x, args.x.dtype, {args.out});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.h_last});
  CheckWorkspace(kernel, args.x, args.workspace, SelectiveScanForwardWorkspace(args.x, state[2]));
  const KernelScope timed("selective_scan",
                          Work(args.x, state[2], 1, {args.x, args.dt, args.z, args.bc, args.out}));
  EYRIE_DISPATCH_CUDA(args.x, SelectiveScanForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { SelectiveScanForwardCpu<decltype(real)>(args); });
}

void SelectiveScanBackward(const SelectiveScanBackwardArgs& args) {
  const char* kernel = "SelectiveScanBackward";
  const Shape state = CheckPass(kernel, args), full = args.x.shape;
  CheckShape(kernel, "dout", args.dout, full);
  CheckOptional(kernel, "dh_last", args.dh_last, state);
  CheckShape(kernel, "dx", args.dx, full);
  CheckShape(kernel, "ddt", args.ddt, full);
  CheckShape(kernel, "dz", args.dz, full);
  CheckShape(kernel, "dbc", args.dbc, args.bc.shape);
  CheckOptional(kernel, "dh0", args.dh0, state);
  CheckShape(kernel, "da_log", args.da_log, args.a_log.shape);
  CheckShape(kernel, "dskip", args.dskip, args.skip.shape);
  CheckShape(kernel, "ddt_bias", args.ddt_bias, args.dt_bias.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dout, args.dx, args.ddt, args.dz, args.dbc});
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype),
             {args.dh_last, args.dh0, args.da_log, args.dskip, args.ddt_bias});
  CheckWorkspace(kernel, args.x, args.workspace, SelectiveScanBackwardWorkspace(args.x, state[2]));
  // The states once more, their gradients from the end, and from both those of decays and inputs.
  const KernelScope timed("selective_scan", Work(args.x, state[2], 4,
                                                 {args.x, args.dt, args.z, args.bc, args.dout,
                                                  args.dx, args.ddt, args.dz}));
  EYRIE_DISPATCH_CUDA(args.x, SelectiveScanBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { SelectiveScanBackwardCpu<decltype(real)>(args); });
}

void SelectiveScanSummary(const SelectiveScanSummaryArgs& args) {
  const char* kernel = "SelectiveScanSummary";
  CheckSummary(kernel, args, args.x);
  const KernelScope timed("selective_scan",
                          Work(args.x, args.a_log.dim(1), 1, {args.x, args.dt, args.bc}));
  EYRIE_DISPATCH_CUDA(args.x, SelectiveScanSummaryCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { SelectiveScanSummaryCpu<decltype(real)>(args); });
}

void SelectiveScanGradSummary(const SelectiveScanGradSummaryArgs& args) {
  const char* kernel = "SelectiveScanGradSummary";
  CheckSummary(kernel, args, args.dout);
  CheckShape(kernel, "z", args.z, args.dout.shape);
  CheckTypes(kernel, args.dout, args.dout.dtype, {args.z});
  const KernelScope timed("selective_scan", Work(args.dout, args.a_log.dim(1), 1,
                                                 {args.dt, args.z, args.dout, args.bc}));
  EYRIE_DISPATCH_CUDA(args.dout, SelectiveScanGradSummaryCuda(args));
  DispatchCpu(kernel, args.dout,
              [&](auto real) { SelectiveScanGradSummaryCpu<decltype(real)>(args); });
}

}  // namespace eyrie
