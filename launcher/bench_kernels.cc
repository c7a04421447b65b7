// `eyrie bench kernels`: every kernel on its own, forward and backward, through its public
// arguments.
#include "launcher/bench_kernels.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>

#include "core/device.h"
#include "core/threads.h"
#include "kernels/adamw/adamw.h"
#include "kernels/attention/attention.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/glu/glu.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/lrpe/lrpe.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/rg_lru/rg_lru.h"
#include "kernels/rotary/rotary.h"
#include "kernels/selective_scan/selective_scan.h"
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/job.h"

namespace eyrie {
namespace {

using Problem = KernelProblem;
using Case = KernelCase;

std::vector<Case> AdamWCases(const Problem& p) {
  const auto random = [&] { return p.device.Uniform(p.device.full(), p.full(), 1.0f); };
  const bool mixed = p.device.full() != p.device.dtype();
  const AdamWArgs args{.param = random(),
                       .grad = random(),
                       .m = p.Full(p.full()),
                       .v = p.Full(p.full()),
                       .copy = mixed ? p.Output() : Tensor{},
                       .rate = 1e-4,
                       .weight_decay = 0.1};
  const Tensor sum = p.device.Zeros(DType::kF64, {1});
  const Tensor workspace = p.Workspace(SumOfSquaresWorkspace(args.grad));
  return {{"step", p.full(), [args] { AdamW(args); },
           2 * BytesOf({args.param, args.m, args.v}) + BytesOf({args.grad, args.copy})},
          {"sum_of_squares", p.full(), [=] { SumOfSquares(args.grad, sum, workspace); },
           BytesOf({args.grad})}};
}

std::vector<Case> AttentionCases(const Problem& p) {
  const Shape heads = p.Heads();
  const Shape keys{p.batch, p.time, heads[3]};
  AttentionForwardArgs forward{.q = p.device.Uniform(heads),
                               .k = p.device.Uniform(keys),
                               .v = p.device.Uniform(keys),
                               .positions = p.Positions(),
                               .o = p.device.Zeros(p.device.dtype(), heads),
                               .lse = p.Full({p.batch, p.time, heads[2]})};
  forward.workspace = p.Workspace(AttentionForwardWorkspace(forward));
  AttentionForward(forward);  // what backward starts from
  AttentionBackwardArgs backward{.q = forward.q,
                                 .k = forward.k,
                                 .v = forward.v,
                                 .positions = forward.positions,
                                 .o = forward.o,
                                 .lse = forward.lse,
                                 .dout = p.device.Uniform(heads),
                                 .dq = p.device.Zeros(p.device.dtype(), heads),
                                 .dk = p.device.Zeros(p.device.dtype(), keys),
                                 .dv = p.device.Zeros(p.device.dtype(), keys)};
  backward.workspace = p.Workspace(AttentionBackwardWorkspace(backward));
  // Two products of every query with every key it sees; backward takes five.
  const double product = 2.0 * static_cast<double>(p.batch * p.channels) *
                         static_cast<double>(p.time * (p.time + 1)) / 2;
  const double inputs = BytesOf({forward.q, forward.k, forward.v, forward.o, forward.lse});
  return {{"forward", heads, [forward] { AttentionForward(forward); }, inputs, 2 * product},
          {"backward", heads, [backward] { AttentionBackward(backward); },
           inputs + BytesOf({backward.dout, backward.dq, backward.dk, backward.dv}), 5 * product}};
}

std::vector<Case> CausalConv1dCases(const Problem& p) {
  constexpr int64_t kTaps = 4;
  const CausalConv1dForwardArgs forward{.x = p.Activations(),
                                        .weight = p.device.Uniform({kTaps, p.channels}),
                                        .bias = p.Row(),
                                        .positions = p.Positions(),
                                        .y = p.Output()};
  const CausalConv1dBackwardArgs backward{
      .x = forward.x,
      .weight = forward.weight,
      .positions = forward.positions,
      .dy = p.Activations(),
      .dx = p.Output(),
      .dweight = p.Full({kTaps, p.channels}),
      .dbias = p.Full({p.channels}),
      .workspace = p.Workspace(CausalConv1dBackwardWorkspace(forward.x, kTaps))};
  return {{"forward", p.full(), [forward] { CausalConv1dForward(forward); },
           BytesOf({forward.x, forward.y})},
          {"backward", p.full(), [backward] { CausalConv1dBackward(backward); },
           BytesOf({backward.x, backward.dy, backward.dx})}};
}

// A vocabulary of C on one rank.
std::vector<Case> CrossEntropyCases(const Problem& p) {
  constexpr double kCap = 30.0;
  const int64_t tokens = p.batch * p.time;
  const Tensor logits = p.device.Uniform(p.device.full(), {tokens, p.channels}, 10.0f);
  const Tensor labels =
      p.device.Integers({tokens}, [&](int64_t i) { return i * 7919 % p.channels; });
  const SoftCapRowMaxArgs row_max{.logits = logits, .soft_cap = kCap, .row_max = p.Full({tokens})};
  const SoftmaxPartialsArgs partials{.logits = logits,
                                     .labels = labels,
                                     .row_max = row_max.row_max,
                                     .partials = p.Full({2, tokens})};
  const bool mixed = p.device.full() != p.device.dtype();
  const CrossEntropyGradArgs grad{
      .logits = logits,
      .labels = labels,
      .row_max = row_max.row_max,
      .partials = partials.partials,
      .dlogits = mixed ? p.device.Zeros(p.device.dtype(), logits.shape) : logits,
      .soft_cap = kCap,
      .scale = 1.0 / static_cast<double>(tokens)};
  const double bytes = BytesOf({logits});
  return {{"row_max", logits.shape, [row_max] { SoftCapRowMax(row_max); }, 2 * bytes},
          {"partials", logits.shape, [partials] { SoftmaxPartials(partials); }, bytes},
          {"backward", logits.shape, [grad] { CrossEntropyGrad(grad); },
           bytes + BytesOf({grad.dlogits})}};
}

std::vector<Case> ElementwiseCases(const Problem& p) {
  const Tensor a = p.Activations(), b = p.Activations(), out = p.Output(), row = p.Row();
  const Tensor sums = p.Full({p.channels}), workspace = p.Workspace(SumRowsWorkspace(a));
  return {{"add", p.full(), [=] { Add(a, b, out); }, BytesOf({a, b, out})},
          {"silu", p.full(), [=] { Silu(a, out); }, BytesOf({a, out})},
          {"silu_backward", p.full(), [=] { SiluBackward(a, b, out); }, BytesOf({a, b, out})},
          {"broadcast_rows", p.full(), [=] { BroadcastRows(row, out); }, BytesOf({out})},
          {"add_row", p.full(), [=] { AddRow(row, out); }, 2 * BytesOf({out})},
          {"sum_rows", p.full(), [=] { SumRows(a, sums, workspace); }, BytesOf({a})}};
}

// As many rows as tokens, each looked up once, in random order.
std::vector<Case> EmbeddingCases(const Problem& p) {
  const int64_t rows = p.batch * p.time;
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(std::random_device()()));
  const Tensor tokens = p.device.Integers({p.batch, p.time},
                                          [&](int64_t i) { return order[static_cast<size_t>(i)]; });
  const Tensor table = p.device.Uniform({rows, p.channels});
  const EmbeddingForwardArgs forward{.tokens = tokens, .table = table, .y = p.Output()};
  const Tensor dtable = p.Full(table.shape);
  const EmbeddingBackwardArgs backward{
      .tokens = tokens,
      .dy = p.Activations(),
      .dtable = dtable,
      .workspace = p.Workspace(EmbeddingBackwardWorkspace(tokens, dtable))};
  return {
      {"forward", p.full(), [forward] { EmbeddingForward(forward); }, BytesOf({table, forward.y})},
      {"backward", p.full(), [backward] { EmbeddingBackward(backward); },
       2 * BytesOf({dtable}) + BytesOf({backward.dy})}};
}

std::vector<Case> GluCases(const Problem& p) {
  const GluForwardArgs forward{
      .gate = p.Activations(3.0f), .value = p.Activations(), .out = p.Output()};
  const GluBackwardArgs backward{.gate = forward.gate,
                                 .value = forward.value,
                                 .dout = p.Activations(),
                                 .dgate = p.Output(),
                                 .dvalue = p.Output()};
  GluBackwardArgs sums = backward;
  sums.dgate_sum = p.Full({p.channels});
  sums.dvalue_sum = p.Full({p.channels});
  sums.workspace = p.Workspace(GluBackwardWorkspace(sums));
  const double bytes =
      BytesOf({backward.gate, backward.value, backward.dout, backward.dgate, backward.dvalue});
  return {{"forward", p.full(), [forward] { GluForward(forward); },
           BytesOf({forward.gate, forward.value, forward.out})},
          {"backward", p.full(), [backward] { GluBackward(backward); }, bytes},
          {"backward_sums", p.full(), [sums] { GluBackward(sums); }, bytes}};
}

std::vector<Case> GatedNormCases(const Problem& p) {
  const Tensor x = p.Activations(), gate = p.Activations(), dout = p.Activations();
  const RowProductsArgs squares{.a = x, .b = x, .sums = p.Full({p.batch, p.time})};
  const RowProductsArgs along{.a = dout, .b = gate, .c = x, .sums = p.Full({p.batch, p.time})};
  const GatedNormForwardArgs forward{
      .x = x, .gate = gate, .squares = squares.sums, .width = p.channels, .out = p.Output()};
  const GatedNormBackwardArgs backward{.x = x,
                                       .gate = gate,
                                       .squares = squares.sums,
                                       .width = p.channels,
                                       .along = along.sums,
                                       .dout = dout,
                                       .dx = p.Output(),
                                       .dgate = p.Output()};
  return {{"squares", p.full(), [squares] { RowProducts(squares); }, BytesOf({x})},
          {"forward", p.full(), [forward] { GatedNormForward(forward); },
           BytesOf({x, gate, forward.out})},
          {"along", p.full(), [along] { RowProducts(along); }, BytesOf({dout, gate, x})},
          {"backward", p.full(), [backward] { GatedNormBackward(backward); },
           BytesOf({x, gate, dout, backward.dx, backward.dgate})}};
}

std::vector<Case> LightningAttentionCases(const Problem& p) {
  const Shape heads = p.Heads(), state{p.batch, heads[2], heads[3], heads[3]};
  const auto output = [&] { return p.device.Zeros(p.device.dtype(), heads); };
  const LightningAttentionForwardArgs forward = [&] {
    LightningAttentionForwardArgs args{
        .q = p.device.Uniform(heads),
        .k = p.device.Uniform(heads),
        .v = p.device.Uniform(heads),
        .rate = p.device.Zeros(p.device.full(), {heads[2]}),  // nothing is forgotten
        .positions = p.Positions(),
        .o = output()};
    args.workspace = p.Workspace(LightningAttentionWorkspace(args.k, args.v));
    return args;
  }();
  const LightningAttentionBackwardArgs backward{.q = forward.q,
                                                .k = forward.k,
                                                .v = forward.v,
                                                .rate = forward.rate,
                                                .positions = forward.positions,
                                                .dout = p.device.Uniform(heads),
                                                .dq = output(),
                                                .dk = output(),
                                                .dv = output(),
                                                .workspace = forward.workspace};
  const LightningAttentionSummaryArgs summary{.k = forward.k,
                                              .v = forward.v,
                                              .rate = forward.rate,
                                              .positions = forward.positions,
                                              .decay = p.Full({p.batch, heads[2]}),
                                              .increment = p.Full(state),
                                              .workspace = forward.workspace};
  const LightningAttentionGradSummaryArgs grad_summary{.q = forward.q,
                                                       .rate = forward.rate,
                                                       .positions = forward.positions,
                                                       .dout = backward.dout,
                                                       .decay = summary.decay,
                                                       .increment = summary.increment,
                                                       .workspace = forward.workspace};
  const double inputs = BytesOf({forward.q, forward.k, forward.v});
  return {{"forward", heads, [forward] { LightningAttentionForward(forward); },
           inputs + BytesOf({forward.o})},
          {"backward", heads, [backward] { LightningAttentionBackward(backward); },
           2 * inputs + BytesOf({backward.dout})},
          {"summary", heads, [summary] { LightningAttentionSummary(summary); },
           BytesOf({summary.k, summary.v, summary.increment})},
          {"grad_summary", heads, [grad_summary] { LightningAttentionGradSummary(grad_summary); },
           BytesOf({grad_summary.q, grad_summary.dout, grad_summary.increment})}};
}

// With angles.
std::vector<Case> LrpeCases(const Problem& p) {
  const Shape heads = p.Heads();
  const Shape doubled{heads[0], heads[1], heads[2], 2 * heads[3]}, angles{heads[2], heads[3]};
  const LrpeForwardArgs forward{.x = p.device.Uniform(heads),
                                .theta = p.device.Uniform(angles),
                                .positions = p.Positions(),
                                .y = p.device.Zeros(p.device.dtype(), doubled)};
  const LrpeBackwardArgs backward{
      .x = forward.x,
      .theta = forward.theta,
      .positions = forward.positions,
      .dy = p.device.Uniform(doubled),
      .dx = p.device.Zeros(p.device.dtype(), heads),
      .dtheta = p.Full(angles),
      .workspace = p.Workspace(LrpeBackwardWorkspace(forward.x, forward.theta))};
  return {{"forward", heads, [forward] { LrpeForward(forward); }, BytesOf({forward.x, forward.y})},
          {"backward", heads, [backward] { LrpeBackward(backward); },
           BytesOf({backward.x, backward.dy, backward.dx})}};
}

std::vector<Case> RmsNormCases(const Problem& p) {
  const RmsNormForwardArgs forward{
      .x = p.Activations(), .weight = p.Row(), .y = p.Output(), .rstd = p.Full({p.batch, p.time})};
  const RmsNormBackwardArgs backward{.x = forward.x,
                                     .weight = forward.weight,
                                     .rstd = forward.rstd,
                                     .dy = p.Activations(),
                                     .dresidual = p.Activations(),
                                     .dx = p.Output(),
                                     .dweight = p.Full({p.channels}),
                                     .workspace = p.Workspace(RmsNormBackwardWorkspace(forward.x))};
  return {{"forward", p.full(), [forward] { RmsNormForward(forward); },
           BytesOf({forward.x, forward.y})},
          {"backward", p.full(), [backward] { RmsNormBackward(backward); },
           BytesOf({backward.x, backward.dy, backward.dresidual, backward.dx})}};
}

std::vector<Case> RgLruCases(const Problem& p) {
  const Tensor decay = p.Full({p.batch, p.channels}), increment = p.Full({p.batch, p.channels});
  RgLruForwardArgs forward{.u = p.Activations(),
                           .zi = p.Activations(4.0f),
                           .zr = p.Activations(4.0f),
                           .lambda = p.FullParameter({p.channels}),
                           .positions = p.Positions(),
                           .h = p.Output()};
  forward.workspace = p.Workspace(RgLruForwardWorkspace(forward.u));
  const Tensor summary_workspace = p.Workspace(RgLruSummaryWorkspace(forward.u));
  const RgLruBackwardArgs backward{.u = forward.u,
                                   .zi = forward.zi,
                                   .zr = forward.zr,
                                   .lambda = forward.lambda,
                                   .positions = forward.positions,
                                   .h = forward.h,
                                   .dh = p.Activations(),
                                   .du = p.Output(),
                                   .dzi = p.Output(),
                                   .dzr = p.Output(),
                                   .dlambda = p.Full({p.channels}),
                                   .workspace = p.Workspace(RgLruBackwardWorkspace(forward.u))};
  const RgLruSummaryArgs summary{.u = forward.u,
                                 .zi = forward.zi,
                                 .zr = forward.zr,
                                 .lambda = forward.lambda,
                                 .positions = forward.positions,
                                 .decay = decay,
                                 .increment = increment,
                                 .workspace = summary_workspace};
  const RgLruGradSummaryArgs grad_summary{.zr = forward.zr,
                                          .lambda = forward.lambda,
                                          .positions = forward.positions,
                                          .dh = backward.dh,
                                          .decay = decay,
                                          .increment = increment,
                                          .workspace = summary_workspace};
  const double inputs = BytesOf({forward.u, forward.zi, forward.zr});
  return {
      {"forward", p.full(), [forward] { RgLruForward(forward); }, inputs + BytesOf({forward.h})},
      {"backward", p.full(), [backward] { RgLruBackward(backward); },
       inputs + BytesOf({backward.h, backward.dh, backward.du, backward.dzi, backward.dzr})},
      {"summary", p.full(), [summary] { RgLruSummary(summary); }, inputs},
      {"grad_summary", p.full(), [grad_summary] { RgLruGradSummary(grad_summary); },
       BytesOf({grad_summary.zr, grad_summary.dh})}};
}

// 16 states a channel, as in all released models.
std::vector<Case> SelectiveScanCases(const Problem& p) {
  constexpr int64_t kStates = 16;
  const Shape state{p.batch, p.channels, kStates};
  const Tensor decay = p.Full(state), increment = p.Full(state);
  SelectiveScanForwardArgs forward{.x = p.Activations(),
                                   .dt = p.Activations(4.0f),
                                   .z = p.Activations(),
                                   .bc = p.device.Uniform({p.batch, p.time, 2 * kStates}),
                                   .a_log = p.FullParameter({p.channels, kStates}),
                                   .skip = p.FullParameter({p.channels}),
                                   .dt_bias = p.FullParameter({p.channels}),
                                   .positions = p.Positions(),
                                   .out = p.Output()};
  forward.workspace = p.Workspace(SelectiveScanForwardWorkspace(forward.x, kStates));
  const SelectiveScanBackwardArgs backward{
      .x = forward.x,
      .dt = forward.dt,
      .z = forward.z,
      .bc = forward.bc,
      .a_log = forward.a_log,
      .skip = forward.skip,
      .dt_bias = forward.dt_bias,
      .positions = forward.positions,
      .dout = p.Activations(),
      .dx = p.Output(),
      .ddt = p.Output(),
      .dz = p.Output(),
      .dbc = p.device.Zeros(p.device.dtype(), forward.bc.shape),
      .da_log = p.Full({p.channels, kStates}),
      .dskip = p.Full({p.channels}),
      .ddt_bias = p.Full({p.channels}),
      .workspace = p.Workspace(SelectiveScanBackwardWorkspace(forward.x, kStates))};
  const Tensor summary_workspace = p.Workspace(SelectiveScanSummaryWorkspace(forward.x, kStates));
  const SelectiveScanSummaryArgs summary{.x = forward.x,
                                         .dt = forward.dt,
                                         .bc = forward.bc,
                                         .a_log = forward.a_log,
                                         .dt_bias = forward.dt_bias,
                                         .positions = forward.positions,
                                         .decay = decay,
                                         .increment = increment,
                                         .workspace = summary_workspace};
  const SelectiveScanGradSummaryArgs grad_summary{.dt = forward.dt,
                                                  .z = forward.z,
                                                  .bc = forward.bc,
                                                  .a_log = forward.a_log,
                                                  .dt_bias = forward.dt_bias,
                                                  .positions = forward.positions,
                                                  .dout = backward.dout,
                                                  .decay = decay,
                                                  .increment = increment,
                                                  .workspace = summary_workspace};
  const double inputs = BytesOf({forward.x, forward.dt, forward.z, forward.bc});
  return {{"forward", p.full(), [forward] { SelectiveScanForward(forward); },
           inputs + BytesOf({forward.out})},
          {"backward", p.full(), [backward] { SelectiveScanBackward(backward); },
           inputs + BytesOf({backward.dout, backward.dx, backward.ddt, backward.dz, backward.dbc})},
          {"summary", p.full(), [summary] { SelectiveScanSummary(summary); },
           BytesOf({forward.x, forward.dt, forward.bc})},
          {"grad_summary", p.full(), [grad_summary] { SelectiveScanGradSummary(grad_summary); },
           BytesOf({forward.dt, forward.z, forward.bc, backward.dout})}};
}

// The first half of each head is rotated, in place; the rest stays.
std::vector<Case> RotaryCases(const Problem& p) {
  const RotaryArgs forward{.x = p.device.Uniform(p.Heads()), .positions = p.Positions()};
  RotaryArgs backward = forward;
  backward.inverse = true;
  return {{"forward", forward.x.shape, [forward] { Rotary(forward); }, BytesOf({forward.x})},
          {"backward", forward.x.shape, [backward] { Rotary(backward); }, BytesOf({forward.x})}};
}

struct Kernel {
  const char* name;
  std::vector<Case> (*cases)(const Problem& problem);
};
constexpr Kernel kKernels[] = {
    {"adamw", AdamWCases},
    {"attention", AttentionCases},
    {"block_map", BlockMapCases},
    {"causal_conv1d", CausalConv1dCases},
    {"cross_entropy", CrossEntropyCases},
    {"elementwise", ElementwiseCases},
    {"embedding", EmbeddingCases},
    {"gated_norm", GatedNormCases},
    {"glu", GluCases},
    {"layer_norm", LayerNormCases},
    {"lightning_attention", LightningAttentionCases},
    {"lrpe", LrpeCases},
    {"mlstm", MlstmCases},
    {"mlstm_gates", MlstmGatesCases},
    {"rg_lru", RgLruCases},
    {"rms_norm", RmsNormCases},
    {"rotary", RotaryCases},
    {"selective_scan", SelectiveScanCases},
    {"slstm", SlstmCases},
};

struct KernelsOptions {
  std::vector<std::string> filter;
  std::vector<int64_t> shape = {1, 2048, 4096};
  config::RunConfig::Device device = config::RunConfig::auto_;
  std::string dtype;
  int threads = 0;
  int repeats = 11;
  bool json = false;
};

void CheckFilter(const std::vector<std::string>& filter) {
  for (const std::string& name : filter) {
    std::string known;
    for (const Kernel& kernel : kKernels) {
      if (name == kernel.name) known = name;
    }
    if (!known.empty()) continue;
    for (const Kernel& kernel : kKernels) known += StrCat(known.empty() ? "" : ", ", kernel.name);
    ThrowBadInput("--filter ", name, ": no such kernel; there are ", known);
  }
}

ExitCode BenchKernels(const KernelsOptions& options) {
  CheckFilter(options.filter);
  if (options.shape[2] % 4 != 0) {
    ThrowBadInput("--shape: C must be a multiple of 4, is ", options.shape[2]);
  }
  if (options.threads > 0) SetThreads(options.threads);
  config::Config config;
  config.mutable_run()->set_device(options.device);
  ConfigErrors errors;
  ValidateDevice(config, errors);
  ThrowIfAny(errors);
  const bool gpu = DeviceOf(config) == Device::kCuda;
  if (!gpu && options.dtype == "bf16") {
    ThrowBadInput("--dtype bf16: the CPU backend computes in f32 alone");
  }
  if (gpu) cuda::SelectDevice(0);
  BenchDevice device(options.repeats, DeviceOf(config),
                     gpu && options.dtype != "f32" ? DType::kBF16 : DType::kF32);
  BenchReport report("kernels", {"kernel", "direction", "shape", "dtype", "ms", "MB", "GB/s",
                                 "GFLOP/s", "ceiling", "share"});
  if (gpu) {
    report.Set("device", cuda::DeviceName());
  } else {
    report.Set("threads", Threads());
  }
  report.Set("copy GB/s", device.CopyBandwidth() / 1e9);
  const Problem problem{device, options.shape[0], options.shape[1], options.shape[2]};
  for (const Kernel& kernel : kKernels) {
    const auto& filter = options.filter;
    if (!filter.empty() && std::find(filter.begin(), filter.end(), kernel.name) == filter.end()) {
      continue;
    }
    for (const Case& one : kernel.cases(problem)) {
      const double seconds = device.MedianSeconds(one.body);
      const double bytes_rate = one.bytes / seconds, flop_rate = one.flops / seconds;
      const bool products = one.flops > 0;
      if (products) report.Set("gemm GFLOP/s", device.GemmRate() / 1e9);
      report.AddRow(
          {kernel.name, one.direction, one.shape.ToString(), Name(device.dtype()), seconds * 1e3,
           one.bytes / 1e6, bytes_rate / 1e9,
           products ? nlohmann::ordered_json(flop_rate / 1e9) : nullptr, products ? "gemm" : "copy",
           products ? flop_rate / device.GemmRate() : bytes_rate / device.CopyBandwidth()});
    }
    device.Release(0);
  }
  report.Print(options.json);
  return ExitCode::kOk;
}

}  // namespace

void AddBenchKernels(CLI::App& bench, ExitCode& code) {
  auto options = std::make_shared<KernelsOptions>();
  CLI::App* command = bench.add_subcommand(
      "kernels",
      "Time every kernel, forward and backward, in one process.\n\n"
      "GB/s counts the bytes that any implementation must read and write, each tensor once, with\n"
      "the caches holding other data before each call. The share is of the ceiling named beside\n"
      "it: a copy between two buffers larger than the caches, read and written bytes counted\n"
      "alike; or for kernels made of matrix products the rate of a product of two square\n"
      "matrices, 2048 x 2048 on the CPU and 8192 x 8192 on a GPU.");
  command->add_option("--filter", options->filter, "only this kernel; may be repeated")
      ->type_name("NAME")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "auto, cpu or cuda (default: auto)")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, config::RunConfig::Device>{{"auto", config::RunConfig::auto_},
                                                           {"cpu", config::RunConfig::cpu},
                                                           {"cuda", config::RunConfig::cuda}}))
      ->type_name("DEVICE");
  command->add_option("--dtype", options->dtype, "of activations: bf16 (default on a GPU) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  command->add_option("--threads", options->threads, "OpenMP threads (default: all cores)")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--shape", options->shape, "sequences, tokens, channels (default: 1,2048,4096)")
      ->delimiter(',')
      ->expected(3)
      ->type_name("B,T,C")
      ->check(CLI::PositiveNumber);
  command->add_option("--repeats", options->repeats, "timed calls of each (default: 11)")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &code] {
    code = RunJob([&](Job& job) {
      if (job.world().size() > 1)
        ThrowBadInput("bench kernels measures one process, without mpirun");
      return BenchKernels(*options);
    });
  });
}

}  // namespace eyrie
