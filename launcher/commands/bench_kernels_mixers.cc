// The kernels of all other mixers than the xLSTM in `eyrie bench kernels`.
#include "kernels/attention/attention.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/lrpe/lrpe.h"
#include "kernels/rg_lru/rg_lru.h"
#include "kernels/rotary/rotary.h"
#include "kernels/selective_scan/selective_scan.h"
#include "launcher/commands/bench_kernels.h"

namespace eyrie {

namespace {

// `named`: what the rows of the table say besides the direction.
std::vector<KernelCase> AttentionCasesFor(const KernelProblem& p, int64_t width, int64_t window,
                                          const std::string& named) {
  const Shape heads = p.Heads(width);
  const Shape keys{p.batch, p.time, heads[3]};
  AttentionForwardArgs forward{.q = p.device.Uniform(heads),
                               .k = p.device.Uniform(keys),
                               .v = p.device.Uniform(keys),
                               .positions = p.Positions(),
                               .window = window,
                               .o = p.Output(heads),
                               .lse = p.Full({p.batch, p.time, heads[2]})};
  forward.workspace = p.Workspace(AttentionForwardWorkspace(forward));
  AttentionForward(forward);  // what backward starts from
  AttentionBackwardArgs backward{.q = forward.q,
                                 .k = forward.k,
                                 .v = forward.v,
                                 .positions = forward.positions,
                                 .window = window,
                                 .o = forward.o,
                                 .lse = forward.lse,
                                 .dout = p.device.Uniform(heads),
                                 .dq = p.Output(heads),
                                 .dk = p.Output(keys),
                                 .dv = p.Output(keys)};
  backward.workspace = p.Workspace(AttentionBackwardWorkspace(backward));
  // Two products of every query with every key it sees; backward takes five. Those before a query
  // are all, or as many as the window has.
  const int64_t before = window == 0 ? p.time - 1 : std::min(window, p.time - 1);
  const double seen =
      static_cast<double>(p.time * (before + 1)) - static_cast<double>(before * (before + 1)) / 2;
  const double product = 2.0 * static_cast<double>(p.batch * p.channels) * seen;
  const double inputs = BytesOf({forward.q, forward.k, forward.v, forward.o, forward.lse});
  return {{"forward" + named, heads, [forward] { AttentionForward(forward); }, inputs, 2 * product},
          {"backward" + named, heads, [backward] { AttentionBackward(backward); },
           inputs + BytesOf({backward.dout, backward.dq, backward.dk, backward.dv}), 5 * product}};
}

}  // namespace

// With heads of 128 channels, also local with Griffin's window; and with narrower and wider ones.
std::vector<KernelCase> AttentionCases(const KernelProblem& p) {
  constexpr int64_t kWidth = 128, kWindow = 1024;
  std::vector<KernelCase> cases = AttentionCasesFor(p, kWidth, 0, "");
  const auto add = [&](int64_t width, int64_t window, const std::string& named) {
    std::ranges::move(AttentionCasesFor(p, width, window, named), std::back_inserter(cases));
  };
  add(kWidth, kWindow, StrCat(", window ", kWindow));
  for (const int64_t width : {64, 256}) add(width, 0, StrCat(", heads of ", p.Heads(width)[3]));
  return cases;
}

std::vector<KernelCase> CausalConv1dCases(const KernelProblem& p) {
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
      .dx_sum = p.Full({p.channels}),
      .workspace = p.Workspace(CausalConv1dBackwardWorkspace(forward.x, kTaps))};
  CausalConv1dForwardArgs forward_silu = forward;
  CausalConv1dBackwardArgs backward_silu = backward;
  forward_silu.silu = backward_silu.silu = true;
  backward_silu.bias = forward.bias;
  backward_silu.dx_sum = {};  // as in the mixers that have a SiLU there
  const double bytes = BytesOf({forward.x});
  return {
      {"forward", p.full(), [forward] { CausalConv1dForward(forward); }, 2 * bytes},
      {"backward", p.full(), [backward] { CausalConv1dBackward(backward); }, 3 * bytes},
      {"forward_silu", p.full(), [forward_silu] { CausalConv1dForward(forward_silu); }, 2 * bytes},
      {"backward_silu", p.full(), [backward_silu] { CausalConv1dBackward(backward_silu); },
       3 * bytes}};
}

std::vector<KernelCase> LightningAttentionCases(const KernelProblem& p) {
  const Shape heads = p.Heads(), state{p.batch, heads[2], heads[3], heads[3]};
  const LightningAttentionForwardArgs forward = [&] {
    LightningAttentionForwardArgs args{
        .q = p.device.Uniform(heads),
        .k = p.device.Uniform(heads),
        .v = p.device.Uniform(heads),
        .rate = p.device.Zeros(p.device.full(), {heads[2]}),  // nothing is forgotten
        .positions = p.Positions(),
        .o = p.Output(heads)};
    args.workspace = p.Workspace(LightningAttentionWorkspace(args.k, args.v));
    return args;
  }();
  const LightningAttentionBackwardArgs backward{.q = forward.q,
                                                .k = forward.k,
                                                .v = forward.v,
                                                .rate = forward.rate,
                                                .positions = forward.positions,
                                                .dout = p.device.Uniform(heads),
                                                .dq = p.Output(heads),
                                                .dk = p.Output(heads),
                                                .dv = p.Output(heads),
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
std::vector<KernelCase> LrpeCases(const KernelProblem& p) {
  const Shape heads = p.Heads();
  const Shape doubled{heads[0], heads[1], heads[2], 2 * heads[3]}, angles{heads[2], heads[3]};
  const LrpeForwardArgs forward{.x = p.device.Uniform(heads),
                                .theta = p.device.Uniform(angles),
                                .positions = p.Positions(),
                                .y = p.Output(doubled)};
  const LrpeBackwardArgs backward{
      .x = forward.x,
      .theta = forward.theta,
      .positions = forward.positions,
      .dy = p.device.Uniform(doubled),
      .dx = p.Output(heads),
      .dtheta = p.Full(angles),
      .workspace = p.Workspace(LrpeBackwardWorkspace(forward.x, forward.theta))};
  return {{"forward", heads, [forward] { LrpeForward(forward); }, BytesOf({forward.x, forward.y})},
          {"backward", heads, [backward] { LrpeBackward(backward); },
           BytesOf({backward.x, backward.dy, backward.dx})}};
}

std::vector<KernelCase> RgLruCases(const KernelProblem& p) {
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
                                   .dzi_sum = p.Full({p.channels}),
                                   .dzr_sum = p.Full({p.channels}),
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
std::vector<KernelCase> SelectiveScanCases(const KernelProblem& p) {
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
      .dbc = p.Output(forward.bc.shape),
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
std::vector<KernelCase> RotaryCases(const KernelProblem& p) {
  const RotaryArgs forward{.x = p.device.Uniform(p.Heads()), .positions = p.Positions()};
  RotaryArgs backward = forward;
  backward.inverse = true;
  return {{"forward", forward.x.shape, [forward] { Rotary(forward); }, BytesOf({forward.x})},
          {"backward", forward.x.shape, [backward] { Rotary(backward); }, BytesOf({forward.x})}};
}

}  // namespace eyrie
