#include "layers/mixers/recurrent.h"

#include <cmath>
#include <optional>
#include <vector>

#include "kernels/glu/glu.h"
#include "kernels/rg_lru/rg_lru.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {
namespace {

constexpr SlotId kHiddenState = 1;  // beside the convolution's

// Draws the decay a = sigmoid(-lambda) at r = 1/8 with a^2 uniform in [0.9^2, 0.999^2], that is,
// uniform by area on the ring (arXiv:2402.19427, section 2.4; architectures of the LRU,
// arXiv:2303.06349, lemma 3.2).
double DrawLambda(const Random& random, uint64_t index) {
  constexpr double kInner = 0.9 * 0.9, kOuter = 0.999 * 0.999;
  const double squared = kInner + (kOuter - kInner) * random.Uniform(index) + 1e-8;
  return std::log(std::expm1(-0.5 * std::log(squared)));
}

BlockLinear Gate(const char* name, const config::RecurrentConfig& own) {
  const int64_t width = own.width(), blocks = own.gate_blocks();
  return BlockLinear({.name = name,
                      .width = width,
                      .blocks = blocks,
                      .bias = true,
                      .init_std = 1.0 / std::sqrt(static_cast<double>(width / blocks))});
}

}  // namespace

RecurrentMixer::RecurrentMixer(const config::ModelConfig& model)
    : global_width_(model.recurrent().width()),
      in_y_({.name = "rec.in_y",
             .in = model.width(),
             .out = global_width_,
             .cut = Linear::Cut::kColumns,
             .init_std = std::sqrt(1.0 / static_cast<double>(model.width()))}),
      in_x_({.name = "rec.in_x",
             .in = model.width(),
             .out = global_width_,
             .cut = Linear::Cut::kColumns,
             .init_std = std::sqrt(1.0 / static_cast<double>(model.width()))}),
      conv_({.name = "rec.conv",
             .width = global_width_,
             .weight_init = InitNormal(std::sqrt(0.01 / CausalConvolution::kTaps)),
             .bias_init = InitConstant(0.0)}),
      gate_i_(Gate("rec.gate_i", model.recurrent())),
      gate_r_(Gate("rec.gate_r", model.recurrent())),
      out_({.name = "rec.out",
            .in = global_width_,
            .out = model.width(),
            .cut = Linear::Cut::kRows,
            .init_std = std::sqrt(2.0 / static_cast<double>(model.depth()) /
                                  static_cast<double>(global_width_))}) {}

void RecurrentMixer::Declare(Declaration& declare) {
  width_ = global_width_ / declare.tensor_size;

  in_y_.Declare(declare);
  in_x_.Declare(declare);
  conv_.Declare(declare);
  gate_i_.Declare(declare);
  gate_r_.Declare(declare);
  lambda_ = declare.params.Add({.name = declare.prefix + "rec.lambda",
                                .shape = {global_width_},
                                .shard_axis = 0,
                                .full_precision = true,
                                .init = DrawLambda});
  out_.Declare(declare);

  h0_ = declare.stash.AddKept("h0", width_, StashTable::EnteringState, Holds::kFullPrecision);
  gate_ = declare.stash.Add("gate", width_);
  u_ = declare.stash.AddCheap("u", width_);
  zi_ = declare.stash.Add("zi", width_);
  zr_ = declare.stash.Add("zr", width_);
  h_ = declare.stash.Add("h", width_);
  product_ = declare.stash.AddCheap("product", width_);
}

void RecurrentMixer::DeclareState(StateTable& table) const {
  conv_.DeclareState(table);
  table.Add("h", 1, width_, Holds::kFullPrecision);
}

void RecurrentMixer::Multiply(const Stash& stash) const {
  GluForward({.gate = stash[gate_], .value = stash[h_], .out = stash[product_]});
}

void RecurrentMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry& carry) const {
  conv_.Refill(run, stash[u_], stash, carry);
  Multiply(stash);
}

void RecurrentMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                             const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const bool exchanges = split && run.pass != Pass::kRecompute;

  // Where nothing travels under the gate branch's projection, it goes with the other one.
  const auto project = [&](const Tensor& rows, const Tensor& inputs) {
    if (exchanges) {
      in_x_.Forward(run, rows, inputs);
    } else {
      ForwardTogether(run, rows, {{&in_x_, inputs}, {&in_y_, stash[gate_]}});
    }
  };
  Event handed_on = conv_.Forward(run, x, project, stash[u_], stash, carry);
  Gemm(std::vector{gate_i_.Product(run, stash[u_], stash[zi_]),
                   gate_r_.Product(run, stash[u_], stash[zr_])});

  // What this chunk does to the state travels under the gate branch's projection.
  const Shape state{run.batch(), width_};
  std::optional<CarryScan> scan;
  if (exchanges) {
    const Tensor decay = run.arena.Allocate(FullPrecision(x.dtype), state);
    const Tensor increment = run.arena.Allocate(FullPrecision(x.dtype), state);
    RgLruSummary({.u = stash[u_],
                  .zi = stash[zi_],
                  .zr = stash[zr_],
                  .lambda = run.params.value(lambda_),
                  .positions = run.positions,
                  .decay = decay,
                  .increment = increment,
                  .workspace = run.Workspace(RgLruSummaryWorkspace(stash[u_]))});
    scan.emplace(sequence, run.arena,
                 CarryScan::Args{.decay = decay,
                                 .increment = increment,
                                 .first = StateSlot(carry.before, kHiddenState),
                                 .entering = stash[h0_],
                                 .leaving = StateSlot(carry.after, kHiddenState)},
                 CarryScan::Direction::kForward);
  }
  if (exchanges) in_y_.Forward(run, x, stash[gate_]);
  if (scan) scan->Wait();
  // With other ranks, the state after all of their chunks is the scan's.
  Tensor h_last;
  if (carry.after != nullptr && !split) h_last = (*carry.after)[kHiddenState].View(state);
  RgLruForward({.u = stash[u_],
                .zi = stash[zi_],
                .zr = stash[zr_],
                .lambda = run.params.value(lambda_),
                .positions = run.positions,
                .h0 = InitialState(run, stash, carry),
                .h = stash[h_],
                .h_last = h_last,
                .workspace = run.Workspace(RgLruForwardWorkspace(stash[u_]))});
  Multiply(stash);
  handed_on.Wait();
  if (run.pass == Pass::kRecompute) return;
  out_.Forward(run, stash[product_], out);
}

void RecurrentMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                              Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const Tensor dh = run.Scratch(width_), dgate = run.Scratch(width_);
  const Tensor du = run.Scratch(width_), dzi = run.Scratch(width_), dzr = run.Scratch(width_);
  const Tensor dconv_in = run.Scratch(width_);

  out_.BackwardInput(run, dy, dh, /*accumulate=*/false);
  GluBackwardArgs product{.gate = stash[gate_],
                          .value = stash[h_],
                          .dout = dh,
                          .dgate = dgate,
                          .dvalue = dh,
                          .dgate_sum = in_y_.BiasGradient(run)};
  product.workspace = run.Workspace(GluBackwardWorkspace(product));
  GluBackward(product);

  const Shape state{run.batch(), width_};
  Tensor dh_last, dh0;
  if (carry_grad.after != nullptr) dh_last = (*carry_grad.after)[kHiddenState].View(state);
  if (carry_grad.before != nullptr) dh0 = (*carry_grad.before)[kHiddenState].View(state);
  std::optional<CarryScan> scan;
  if (split) {
    const Tensor decay = run.arena.Allocate(FullPrecision(x.dtype), state);
    const Tensor increment = run.arena.Allocate(FullPrecision(x.dtype), state);
    const Tensor entering = run.arena.Allocate(FullPrecision(x.dtype), state);
    RgLruGradSummary({.zr = stash[zr_],
                      .lambda = run.params.value(lambda_),
                      .positions = run.positions,
                      .dh = dh,
                      .decay = decay,
                      .increment = increment,
                      .workspace = run.Workspace(RgLruSummaryWorkspace(dh))});
    scan.emplace(sequence, run.arena,
                 CarryScan::Args{.decay = decay,
                                 .increment = increment,
                                 .first = dh_last,
                                 .entering = entering,
                                 .leaving = dh0},
                 CarryScan::Direction::kBackward);
    dh_last = entering;
    dh0 = {};
  }
  out_.BackwardWeight(run, stash[product_], dy);
  in_y_.BackwardInput(run, dgate, dx, /*accumulate=*/false);
  if (scan) scan->Wait();
  RgLruBackward({.u = stash[u_],
                 .zi = stash[zi_],
                 .zr = stash[zr_],
                 .lambda = run.params.value(lambda_),
                 .positions = run.positions,
                 .h0 = InitialState(run, stash, carry),
                 .h = stash[h_],
                 .dh = dh,
                 .dh_last = dh_last,
                 .du = du,
                 .dzi = dzi,
                 .dzr = dzr,
                 .dh0 = dh0,
                 .dlambda = run.params.grad(lambda_),
                 .dzi_sum = gate_i_.BiasGradient(run),
                 .dzr_sum = gate_r_.BiasGradient(run),
                 .workspace = run.Workspace(RgLruBackwardWorkspace(stash[u_]))});
  gate_i_.BackwardInput(run, dzi, du, /*accumulate=*/true);
  gate_r_.BackwardInput(run, dzr, du, /*accumulate=*/true);

  CausalConvolution::Returning returning =
      conv_.Backward(run, du, dconv_in, stash, carry, carry_grad, in_x_.BiasGradient(run));
  gate_i_.BackwardWeight(run, stash[u_], dzi);
  gate_r_.BackwardWeight(run, stash[u_], dzr);
  returning.Wait();

  // The sum of dx over tensor ranks travels while the weights' gradients are computed.
  in_x_.BackwardInput(run, dconv_in, dx, /*accumulate=*/true);
  Event reduced = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  in_x_.BackwardWeightAlone(run, x, dconv_in);
  in_y_.BackwardWeightAlone(run, x, dgate);
  reduced.Wait();
}

Tensor RecurrentMixer::InitialState(const Run& run, const Stash& stash, const Carry& carry) const {
  const Shape state{run.batch(), width_};
  if (run.mesh.sequence().size() > 1) return stash[h0_].View(state);
  return carry.before == nullptr ? Tensor{} : (*carry.before)[kHiddenState].View(state);
}

MixerEntry RecurrentMixerEntry() {
  return {"recurrent",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            const auto& own = model.recurrent();
            errors.RequireDivisible("model.recurrent.width", own.width(),
                                    "model.recurrent.gate_blocks", own.gate_blocks());
            errors.RequireDivisible("model.recurrent.gate_blocks", own.gate_blocks(),
                                    "parallel.tensor", tensor);
          },
          [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
            return std::make_unique<RecurrentMixer>(model);
          },
          /*min_chunk=*/CausalConvolution::kHalo};
}

}  // namespace eyrie
