// The kernels of the xLSTM in `eyrie bench kernels`.
#include "kernels/block_map/block_map.h"
#include "kernels/gated_norm/gated_layer_norm.h"
#include "kernels/mlstm/mlstm.h"
#include "kernels/mlstm/mlstm_gates.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/slstm/slstm.h"
#include "launcher/commands/bench_kernels.h"

namespace eyrie {

namespace {

// Values as wide as the channels, queries and keys of a width of their own. Nothing is forgotten.
std::vector<KernelCase> MlstmCasesOf(const KernelProblem& p, const Shape& values, int64_t width) {
  const Shape gates{p.batch, p.time, values[2]}, keys{p.batch, p.time, values[2], width};
  const Shape heads{p.batch, values[2]}, n{p.batch, values[2], keys[3]};
  const Shape c{p.batch, values[2], keys[3], values[3]};
  const MlstmForwardArgs forward = [&] {
    MlstmForwardArgs args{.q = p.device.Uniform(keys),
                          .k = p.device.Uniform(keys),
                          .v = p.device.Uniform(values),
                          .log_i = p.device.Uniform(p.device.full(), gates, 1.0f),
                          .log_f = p.Full(gates),
                          .positions = p.Positions(),
                          .h = p.Output(values),
                          .maximum = p.Full(gates),
                          .normaliser = p.Full(gates)};
    args.workspace = p.Workspace(MlstmWorkspace(args.q, args.v, args.options));
    return args;
  }();
  MlstmForward(forward);  // what backward starts from
  const MlstmBackwardArgs backward{.q = forward.q,
                                   .k = forward.k,
                                   .v = forward.v,
                                   .log_i = forward.log_i,
                                   .log_f = forward.log_f,
                                   .positions = forward.positions,
                                   .h = forward.h,
                                   .maximum = forward.maximum,
                                   .normaliser = forward.normaliser,
                                   .dh = p.device.Uniform(values),
                                   .dq = p.Output(keys),
                                   .dk = p.Output(keys),
                                   .dv = p.Output(values),
                                   .dlog_i = p.Full(gates),
                                   .dlog_f = p.Full(gates),
                                   .workspace = forward.workspace};
  const MlstmSummaryArgs summary{.k = forward.k,
                                 .v = forward.v,
                                 .log_i = forward.log_i,
                                 .log_f = forward.log_f,
                                 .positions = forward.positions,
                                 .log_decay = p.Full(heads),
                                 .increment = {.c = p.Full(c), .n = p.Full(n), .m = p.Full(heads)},
                                 .workspace = forward.workspace};
  const MlstmGradSummaryArgs grad_summary{.q = forward.q,
                                          .log_f = forward.log_f,
                                          .positions = forward.positions,
                                          .before_m = p.Full(heads),
                                          .after_m = p.Full(heads),
                                          .h = forward.h,
                                          .maximum = forward.maximum,
                                          .normaliser = forward.normaliser,
                                          .dh = backward.dh,
                                          .decay = p.Full(heads),
                                          .increment_c = p.Full(c),
                                          .increment_n = p.Full(n),
                                          .workspace = forward.workspace};
  // A product of every token with the state: forward makes the state and reads it; backward makes
  // it again, makes its gradient, and takes dq from the one, dk and dv from the other.
  const double product = 2.0 * static_cast<double>(keys.size()) * static_cast<double>(values[3]);
  const double inputs = BytesOf({forward.q, forward.k, forward.v, forward.log_i, forward.log_f,
                                 forward.h, forward.maximum, forward.normaliser});
  return {{"forward", values, [forward] { MlstmForward(forward); }, inputs, 2 * product},
          {"backward", values, [backward] { MlstmBackward(backward); },
           inputs + BytesOf({backward.dh, backward.dq, backward.dk, backward.dv, backward.dlog_i,
                             backward.dlog_f}),
           5 * product},
          {"summary", values, [summary] { MlstmSummary(summary); },
           BytesOf({summary.k, summary.v, summary.increment.c}), product},
          {"grad_summary", values, [grad_summary] { MlstmGradSummary(grad_summary); },
           BytesOf({grad_summary.q, grad_summary.h, grad_summary.dh, grad_summary.increment_c}),
           product}};
}

}  // namespace

// The heads of xLSTM 7B where there are 4096 channels, and those of xLSTM 1.3B.
std::vector<KernelCase> MlstmCases(const KernelProblem& p) {
  const Shape heads = p.Heads(512);
  return MlstmCasesOf(p, heads, heads[3] / 2);
}
std::vector<KernelCase> MlstmWideCases(const KernelProblem& p) {
  const Shape heads = p.Heads(1024);
  return MlstmCasesOf(p, heads, heads[3]);
}

// Of as many heads as xLSTM 7B has.
std::vector<KernelCase> MlstmGatesCases(const KernelProblem& p) {
  const Shape gates{p.batch, p.time, p.Heads(512)[2]};
  const Tensor bias = p.Full({gates[2]});
  const MlstmGatesForwardArgs forward{.i = p.device.Uniform(gates),
                                      .f = p.device.Uniform(gates),
                                      .bias_i = bias,
                                      .bias_f = bias,
                                      .soft_cap = 15,
                                      .log_i = p.Full(gates),
                                      .log_f = p.Full(gates)};
  const MlstmGatesBackwardArgs backward{.i = forward.i,
                                        .f = forward.f,
                                        .bias_i = bias,
                                        .bias_f = bias,
                                        .soft_cap = forward.soft_cap,
                                        .dlog_i = forward.log_i,
                                        .dlog_f = forward.log_f,
                                        .di = p.Output(gates),
                                        .df = p.Output(gates),
                                        .dbias_i = p.Full({gates[2]}),
                                        .dbias_f = p.Full({gates[2]})};
  const double inputs = BytesOf({forward.i, forward.f, forward.log_i, forward.log_f});
  return {{"forward", gates, [forward] { MlstmGatesForward(forward); }, inputs},
          {"backward", gates, [backward] { MlstmGatesBackward(backward); },
           inputs + BytesOf({backward.di, backward.df})}};
}

// The shape's channels cannot always be cut in fours: the first of them that can.
std::vector<KernelCase> BlockMapCases(const KernelProblem& p) {
  const int64_t width = p.channels / kBlockMapWidth * kBlockMapWidth;
  if (width == 0) return {};
  const Shape rows{p.batch, p.time, width};
  const Shape weights{width / kBlockMapWidth, kBlockMapWidth, kBlockMapWidth};
  const Tensor x = p.device.Uniform(rows), dx = p.Output(rows);
  constexpr int64_t kGates = 8;  // as many as xLSTM 1.3B's four heads have
  const auto forward = [&](int64_t maps, int64_t gates) {
    BlockMapForwardArgs args{.x = x};
    for (int64_t m = 0; m < maps; ++m) {
      args.maps.push_back({.w = p.device.Uniform(weights), .y = p.Output(rows)});
      if (gates > 0) args.maps.back().gates_w = p.device.Uniform({gates, width});
    }
    if (gates > 0) args.gates = p.Full({p.batch, p.time, gates});
    args.workspace = p.Workspace(BlockMapForwardWorkspace(x, gates));
    return args;
  };
  // The outputs serve as their own gradients.
  const auto backward = [&](const BlockMapForwardArgs& of, int64_t gates) {
    BlockMapBackwardArgs args{.x = x, .dx = dx, .accumulate = true};
    for (const auto& [w, y, gates_w] : of.maps) {
      args.maps.push_back({.w = w, .dy = y, .dw = p.Full(weights), .gates_w = gates_w});
      if (gates > 0) args.maps.back().dgates_w = p.Full(gates_w.shape);
    }
    if (gates > 0) args.dgates = p.device.Uniform({p.batch, p.time, gates});
    args.workspace =
        p.Workspace(BlockMapBackwardWorkspace(x, static_cast<int64_t>(of.maps.size()), gates));
    return args;
  };

  const double bytes = BytesOf({x});
  std::vector<KernelCase> cases;
  for (const int64_t gates : {int64_t{0}, kGates}) {
    for (const int64_t maps : {1, 2}) {
      const std::string suffix = StrCat(maps == 2 ? "_two" : "", gates > 0 ? "_gates" : "");
      const BlockMapForwardArgs there = forward(maps, gates);
      const BlockMapBackwardArgs back = backward(there, gates);
      const auto passes = static_cast<double>(maps);
      cases.push_back(
          {"forward" + suffix, rows, [there] { BlockMapForward(there); }, (1 + passes) * bytes});
      cases.push_back(
          {"backward" + suffix, rows, [back] { BlockMapBackward(back); }, (3 + passes) * bytes});
    }
  }
  return cases;
}

// A norm a head, with the skip of the mLSTM block.
std::vector<KernelCase> GatedLayerNormCases(const KernelProblem& p) {
  const Shape heads = p.Heads(1024), row{heads[2], heads[3]}, statistics{p.batch, p.time, heads[2]};
  const GatedLayerNormForwardArgs forward{.x = p.device.Uniform(heads),
                                          .weight = p.device.Uniform(row),
                                          .skip = p.device.Uniform(row),
                                          .s = p.device.Uniform(heads),
                                          .gate = p.device.Uniform(heads, 3.0f),
                                          .out = p.Output(heads),
                                          .mean = p.Full(statistics),
                                          .rstd = p.Full(statistics)};
  const GatedLayerNormBackwardArgs backward{
      .x = forward.x,
      .weight = forward.weight,
      .skip = forward.skip,
      .s = forward.s,
      .gate = forward.gate,
      .mean = forward.mean,
      .rstd = forward.rstd,
      .dout = p.device.Uniform(heads),
      .dx = p.Output(heads),
      .ds = p.Output(heads),
      .dgate = p.Output(heads),
      .dweight = p.Full(row),
      .dskip = p.Full(row),
      .workspace = p.Workspace(GatedLayerNormBackwardWorkspace(forward.x, forward.skip))};
  const double bytes = BytesOf({forward.x});
  return {{"forward", heads, [forward] { GatedLayerNormForward(forward); }, 4 * bytes},
          {"backward", heads, [backward] { GatedLayerNormBackward(backward); }, 7 * bytes}};
}

// A norm a head.
std::vector<KernelCase> LayerNormCases(const KernelProblem& p) {
  const Shape heads = p.Heads(512), row{heads[2], heads[3]}, statistics{p.batch, p.time, heads[2]};
  const LayerNormForwardArgs forward{.x = p.device.Uniform(heads),
                                     .weight = p.device.Uniform(row),
                                     .y = p.Output(heads),
                                     .mean = p.Full(statistics),
                                     .rstd = p.Full(statistics)};
  const LayerNormBackwardArgs backward{
      .x = forward.x,
      .weight = forward.weight,
      .mean = forward.mean,
      .rstd = forward.rstd,
      .dy = p.device.Uniform(heads),
      .dresidual = p.device.Uniform(heads),
      .dx = p.Output(heads),
      .dweight = p.Full(row),
      .workspace = p.Workspace(LayerNormBackwardWorkspace(forward.x))};
  return {
      {"forward", heads, [forward] { LayerNormForward(forward); }, BytesOf({forward.x, forward.y})},
      {"backward", heads, [backward] { LayerNormBackward(backward); },
       BytesOf({backward.x, backward.dy, backward.dresidual, backward.dx})}};
}

// Heads as wide as a cluster of blocks can hold; on the CPU, as its caches can.
std::vector<KernelCase> SlstmCases(const KernelProblem& p) {
  const Tensor positions = p.Positions();
  const Shape cells = p.Heads(positions.device == Device::kCuda ? 512 : 128);
  const int64_t heads = cells[2], units = cells[3];
  const Shape gates{p.batch, p.time, heads, 4, units};
  SlstmForwardArgs forward{.x = p.device.Uniform(gates, 4.0f),
                           .r = p.device.Uniform({heads, units, 4, units}, 0.02f),
                           .bias = p.Full({heads, 4, units}),
                           .positions = positions,
                           .y = p.Output(cells)};
  forward.workspace = p.Workspace(SlstmForwardWorkspace(forward.x));
  SlstmForward(forward);  // what backward starts from
  const SlstmBackwardArgs backward{.x = forward.x,
                                   .r = forward.r,
                                   .bias = forward.bias,
                                   .positions = positions,
                                   .y = forward.y,
                                   .dy = p.device.Uniform(cells),
                                   .dx = p.Output(gates),
                                   .dr = p.Full(forward.r.shape),
                                   .dbias = p.Full(forward.bias.shape),
                                   .workspace = p.Workspace(SlstmBackwardWorkspace(forward.x))};
  // A product of every token with r: backward makes the pre-activations again, the gradient of y
  // and that of r.
  const double product = 2.0 * static_cast<double>(forward.x.size() * units);
  const double inputs = BytesOf({forward.x, forward.y});
  return {{"forward", cells, [forward] { SlstmForward(forward); }, inputs, product},
          {"backward", cells, [backward] { SlstmBackward(backward); },
           inputs + BytesOf({backward.dy, backward.dx}), 3 * product}};
}

}  // namespace eyrie
