#include "layers/mlstm_cell.h"

#include <algorithm>

#include "core/tensor_math.h"
#include "kernels/gated_norm/gated_layer_norm.h"

namespace eyrie {

MlstmCell::MlstmCell(Options options) : options_(std::move(options)) {
  // A sigmoid's logarithm never exceeds 0.
  kernel_.stabilised =
      options_.input_gate != MlstmGate::kSigmoid || options_.forget_gate != MlstmGate::kSigmoid;
  kernel_.epsilon = options_.epsilon;
}

void MlstmCell::Declare(Declaration& declare) {
  const int64_t heads = options_.heads;
  heads_ = heads / declare.tensor_size;
  const auto add = [&](const char* name, Shape shape, bool full_precision, InitFn init) {
    return declare.params.Add({.name = declare.prefix + options_.name + name,
                               .shape = shape,
                               .shard_axis = 0,
                               .full_precision = full_precision,
                               .init = std::move(init)});
  };
  bias_i_ = add(".gate_i.b", {heads}, true, options_.input_bias);
  bias_f_ = add(".gate_f.b", {heads}, true, [heads](const Random&, uint64_t head) {
    const double last = static_cast<double>(std::max<int64_t>(1, heads - 1));
    return 3.0 + 3.0 * static_cast<double>(head) / last;
  });
  norm_ = add(".norm.w", {heads, options_.value_width}, false, InitConstant(0.0));
  if (options_.skip) {
    skip_ = add(".skip", {heads * options_.value_width}, false, InitConstant(1.0));
  }

  const auto entering = [&](const char* name, int64_t width) {
    return declare.stash.AddKept(name, width, StashTable::EnteringState, Holds::kFullPrecision);
  };
  c0_ = entering("c0", keys() * options_.value_width);
  n0_ = entering("n0", keys());
  m0_ = entering("m0", heads_);
  h_ = declare.stash.Add("h", values());
  maximum_ = declare.stash.Add("maximum", heads_, Holds::kFullPrecision);
  normaliser_ = declare.stash.Add("normaliser", heads_, Holds::kFullPrecision);
  statistics_ = declare.stash.AddCheap("cell_norm", 2 * heads_, Holds::kFullPrecision);
  memories_ = declare.stash.AddReusable(
      "memories", [this](DType dtype, Device device, int64_t batch, int64_t tokens) {
        const auto rows = [&](int64_t width) {
          return Tensor{nullptr, dtype, device, {batch, tokens, heads_, width}};
        };
        return MlstmMemories(rows(options_.key_width), rows(options_.value_width), kernel_);
      });
}

void MlstmCell::DeclareState(StateTable& table) const {
  const SlotId c = table.Add("c", keys(), options_.value_width, Holds::kFullPrecision);
  const SlotId n = table.Add("n", heads_, options_.key_width, Holds::kFullPrecision);
  table.AddLogScale("m", 1, heads_, {c, n}, kernel_.stabilised ? kMlstmEmpty : 0.0);
  EYRIE_CHECK(c == options_.first_state);
}

double MlstmCell::ExtraFlops(int64_t tokens) const {
  // A token's key and value enter the memory and its query reads it.
  return 4.0 * static_cast<double>(tokens * heads_ * options_.key_width * options_.value_width);
}

Tensor MlstmCell::GateOf(const Tensor& gates, int64_t which) const {
  return gates.Rows(which, which + 1).View({gates.dim(1), gates.dim(2), heads_});
}

Tensor MlstmCell::Heads(const Tensor& tensor) const {
  if (!tensor.defined()) return {};
  return tensor.View({tensor.dim(0), tensor.dim(1), heads_, tensor.dim(2) / heads_});
}

void MlstmCell::Gates(Run& run, const Tensor& gates, const Tensor& log_i,
                      const Tensor& log_f) const {
  MlstmGatesForward({.i = GateOf(gates, 0),
                     .f = GateOf(gates, 1),
                     .bias_i = run.params.value(bias_i_),
                     .bias_f = run.params.value(bias_f_),
                     .input = options_.input_gate,
                     .forget = options_.forget_gate,
                     .soft_cap = options_.gate_soft_cap,
                     .log_i = log_i,
                     .log_f = log_f});
}

MlstmState MlstmCell::View(int64_t batch, const Tensor& c, const Tensor& n, const Tensor& m) const {
  const int64_t dk = options_.key_width, dv = options_.value_width;
  return {c.View({batch, heads_, dk, dv}), n.View({batch, heads_, dk}), m.View({batch, heads_})};
}

MlstmState MlstmCell::StateOf(const Run& run, const State* state) const {
  if (state == nullptr) return {};
  const SlotId c = options_.first_state;
  return View(run.batch(), (*state)[c], (*state)[c + 1], (*state)[c + 2]);
}

MlstmState MlstmCell::Before(const Run& run, const Stash& stash, const Carry& carry) const {
  if (run.mesh.sequence().size() == 1) return StateOf(run, carry.before);
  return View(run.batch(), stash[c0_], stash[n0_], stash[m0_]);
}

MlstmCell::Forward::Forward(const MlstmCell& cell, Run& run, const Inputs& inputs, Stash& stash,
                            const Carry& carry)
    : cell_(cell), run_(run), inputs_(inputs), stash_(stash), carry_(carry) {
  const auto scratch = [&] {
    return run.FullScratch(cell.heads_).View({run.batch(), run.tokens(), cell.heads_});
  };
  log_i_ = scratch();
  log_f_ = scratch();
  cell.Gates(run, inputs.gates, log_i_, log_f_);
  if (run.mesh.sequence().size() == 1 || run.pass == Pass::kRecompute) return;

  const MlstmState entering = cell.Before(run, stash, carry);
  const auto like = [&](const Tensor& tensor) {
    return run.arena.Allocate(tensor.dtype, tensor.shape);
  };
  const Tensor log_decay = like(entering.m);
  const MlstmState increment{like(entering.c), like(entering.n), like(entering.m)};
  const Tensor k = cell.Heads(inputs.k), v = cell.Heads(inputs.v);
  MlstmSummary({.k = k,
                .v = v,
                .log_i = log_i_,
                .log_f = log_f_,
                .positions = run.positions,
                .log_decay = log_decay,
                .increment = increment,
                .options = cell.kernel_,
                .workspace = run.Workspace(MlstmWorkspace(k, v, cell.kernel_))});
  const auto scanned = [](const MlstmState& state) {
    return StabilisedCarryScan::State{state.c, state.n, state.m};
  };
  scan_.emplace(run.mesh.sequence(), run.arena,
                StabilisedCarryScan::Args{.log_decay = log_decay,
                                          .increment = scanned(increment),
                                          .first = scanned(cell.StateOf(run, carry.before)),
                                          .first_m = cell.kernel_.stabilised ? kMlstmEmpty : 0.0,
                                          .entering = scanned(entering),
                                          .leaving = scanned(cell.StateOf(run, carry.after))});
}

void MlstmCell::Out(Run& run, Stash& stash, const Outward& outward, const Tensor& out) const {
  const Tensor h = Heads(stash[h_]);
  const Tensor statistics = stash[statistics_].View({2, h.size() / h.dim(3)});
  GatedLayerNormForward({.x = h,
                         .weight = run.params.value(norm_),
                         .skip = options_.skip ? OfHeads(run.params.value(skip_)) : Tensor{},
                         .s = Heads(outward.s),
                         .activation = options_.out_gate,
                         .gate = Heads(outward.gate),
                         .epsilon = options_.norm_epsilon,
                         .out = Heads(out),
                         .mean = statistics.Rows(0, 1),
                         .rstd = statistics.Rows(1, 2)});
}

void MlstmCell::Forward::Finish() {
  if (scan_) scan_->Wait();
  const Tensor q = cell_.Heads(inputs_.q), k = cell_.Heads(inputs_.k), v = cell_.Heads(inputs_.v);
  const bool split = run_.mesh.sequence().size() > 1;
  MlstmForward({.q = q,
                .k = k,
                .v = v,
                .log_i = log_i_,
                .log_f = log_f_,
                .positions = run_.positions,
                .before = cell_.Before(run_, stash_, carry_),
                .h = cell_.Heads(stash_[cell_.h_]),
                .maximum = stash_[cell_.maximum_],
                .normaliser = stash_[cell_.normaliser_],
                // With other ranks, the state after all of their chunks is the scan's.
                .after = split ? MlstmState{} : cell_.StateOf(run_, carry_.after),
                .memories = stash_[cell_.memories_],
                .options = cell_.kernel_,
                .workspace = run_.Workspace(MlstmWorkspace(q, v, cell_.kernel_))});
}

MlstmCell::Backward::Backward(const MlstmCell& cell, Run& run, const Inputs& inputs,
                              const Outward& outward, const Tensor& dout, const Outward& gradients,
                              Stash& stash, const Carry& carry, const CarryGrad& carry_grad)
    : cell_(cell),
      run_(run),
      inputs_(inputs),
      stash_(stash),
      carry_(carry),
      dafter_(cell.StateOf(run, carry_grad.after)),
      dbefore_(cell.StateOf(run, carry_grad.before)) {
  const int64_t heads = cell.heads_;
  log_i_ = run.FullScratch(heads);
  log_f_ = run.FullScratch(heads);
  cell.Gates(run, inputs.gates, log_i_, log_f_);
  dh_ = cell.Heads(dout);
  h_dh_ = run.FullScratch(heads);
  const Tensor h = cell.Heads(stash[cell.h_]);
  const Tensor statistics = stash[cell.statistics_].View({2, h.size() / h.dim(3)});
  const bool skips = cell.options_.skip;
  const Tensor skip = skips ? cell.OfHeads(run.params.value(cell.skip_)) : Tensor{};
  {
    ArenaScope scope(run.arena);
    GatedLayerNormBackward({.x = h,
                            .weight = run.params.value(cell.norm_),
                            .skip = skip,
                            .s = cell.Heads(outward.s),
                            .activation = cell.options_.out_gate,
                            .gate = cell.Heads(outward.gate),
                            .mean = statistics.Rows(0, 1),
                            .rstd = statistics.Rows(1, 2),
                            .dout = dh_,
                            .dx = dh_,
                            .ds = cell.Heads(gradients.s),
                            .dgate = cell.Heads(gradients.gate),
                            .x_dx = h_dh_,
                            .epsilon = cell.options_.norm_epsilon,
                            .dweight = run.params.grad(cell.norm_),
                            .dskip = skips ? cell.OfHeads(run.params.grad(cell.skip_)) : Tensor{},
                            .workspace = run.Workspace(GatedLayerNormBackwardWorkspace(h, skip))});
  }
  dafter_.m = dbefore_.m = {};
  if (!dafter_.c.defined() && run.mesh.sequence().size() == 1) return;
  // The last token's maximum is the state's.
  after_m_ = run.arena.Allocate(log_i_.dtype, {run.batch(), heads});
  CopyRows(stash[cell.maximum_], run.tokens() - 1, after_m_.View({run.batch(), 1, heads}), 0, 1);
  if (run.mesh.sequence().size() == 1) return;

  const MlstmState before = cell.Before(run, stash, carry);
  const auto like = [&](const Tensor& tensor) {
    return run.arena.Allocate(tensor.dtype, tensor.shape);
  };
  const Tensor decay = like(before.m);
  const MlstmState increment{like(before.c), like(before.n), {}};
  const MlstmState entering{like(before.c), like(before.n), {}};
  const Tensor q = cell.Heads(inputs.q);
  MlstmGradSummary({.q = q,
                    .log_f = log_f_,
                    .positions = run.positions,
                    .before_m = before.m,
                    .after_m = after_m_,
                    .h = h,
                    .maximum = stash[cell.maximum_],
                    .normaliser = stash[cell.normaliser_],
                    .dh = dh_,
                    .h_dh = h_dh_,
                    .decay = decay,
                    .increment_c = increment.c,
                    .increment_n = increment.n,
                    .options = cell.kernel_,
                    .workspace = run.Workspace(MlstmWorkspace(q, h, cell.kernel_))});
  const auto scan = [&](const Tensor& added, const Tensor& first, const Tensor& enters,
                        const Tensor& leaves, std::optional<CarryScan>& result) {
    result.emplace(run.mesh.sequence(), run.arena,
                   CarryScan::Args{.decay = decay,
                                   .increment = added,
                                   .first = first,
                                   .entering = enters,
                                   .leaving = leaves},
                   CarryScan::Direction::kBackward);
  };
  scan(increment.c, dafter_.c, entering.c, dbefore_.c, scan_c_);
  scan(increment.n, dafter_.n, entering.n, dbefore_.n, scan_n_);
  dafter_ = entering;
  dbefore_ = {};
}

void MlstmCell::Backward::Finish(const Inputs& gradients) {
  if (scan_c_) scan_c_->Wait();
  if (scan_n_) scan_n_->Wait();
  ArenaScope scope(run_.arena);
  const int64_t heads = cell_.heads_;
  const Tensor q = cell_.Heads(inputs_.q), k = cell_.Heads(inputs_.k), v = cell_.Heads(inputs_.v);
  const Tensor dlog_i = run_.FullScratch(heads), dlog_f = run_.FullScratch(heads);
  MlstmBackward({.q = q,
                 .k = k,
                 .v = v,
                 .log_i = log_i_,
                 .log_f = log_f_,
                 .positions = run_.positions,
                 .before = cell_.Before(run_, stash_, carry_),
                 .h = cell_.Heads(stash_[cell_.h_]),
                 .maximum = stash_[cell_.maximum_],
                 .normaliser = stash_[cell_.normaliser_],
                 .dh = dh_,
                 .h_dh = h_dh_,
                 .memories = stash_[cell_.memories_],
                 .dafter = dafter_,
                 .after_m = after_m_,
                 .dq = cell_.Heads(gradients.q),
                 .dk = cell_.Heads(gradients.k),
                 .dv = cell_.Heads(gradients.v),
                 .dlog_i = dlog_i,
                 .dlog_f = dlog_f,
                 .dbefore = dbefore_,
                 .options = cell_.kernel_,
                 .workspace = run_.Workspace(MlstmWorkspace(q, v, cell_.kernel_))});
  const Tensor dgates = run_.arena.Allocate(dlog_i.dtype, inputs_.gates.shape);
  MlstmGatesBackward({.i = cell_.GateOf(inputs_.gates, 0),
                      .f = cell_.GateOf(inputs_.gates, 1),
                      .bias_i = run_.params.value(cell_.bias_i_),
                      .bias_f = run_.params.value(cell_.bias_f_),
                      .input = cell_.options_.input_gate,
                      .forget = cell_.options_.forget_gate,
                      .soft_cap = cell_.options_.gate_soft_cap,
                      .dlog_i = dlog_i,
                      .dlog_f = dlog_f,
                      .di = cell_.GateOf(dgates, 0),
                      .df = cell_.GateOf(dgates, 1),
                      .dbias_i = run_.params.grad(cell_.bias_i_),
                      .dbias_f = run_.params.grad(cell_.bias_f_)});
  Convert(dgates, gradients.gates);
}

}  // namespace eyrie
