#include "layers/mixers/recurrent.h"

#include <cmath>
#include <optional>

#include "core/blas.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/glu/glu.h"
#include "kernels/rg_lru/rg_lru.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {
namespace {

constexpr int64_t kTaps = 4;
constexpr SlotId kConvState = 0, kHiddenState = 1;

// Draws the decay a = sigmoid(-lambda) at r = 1/8 with a^2 uniform in [0.9^2, 0.999^2], that is,
// uniform by area on the ring (arXiv:2402.19427, section 2.4; architectures of the LRU,
// arXiv:2303.06349, lemma 3.2).
double DrawLambda(const Random& random, uint64_t index) {
  constexpr double kInner = 0.9 * 0.9, kOuter = 0.999 * 0.999;
  const double squared = kInner + (kOuter - kInner) * random.Uniform(index) + 1e-8;
  return std::log(std::expm1(-0.5 * std::log(squared)));
}

}  // namespace

RecurrentMixer::RecurrentMixer(const config::ModelConfig& model)
    : global_width_(model.recurrent().width()),
      global_blocks_(model.recurrent().gate_blocks()),
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
      out_({.name = "rec.out",
            .in = global_width_,
            .out = model.width(),
            .cut = Linear::Cut::kRows,
            .init_std = std::sqrt(2.0 / static_cast<double>(model.depth()) /
                                  static_cast<double>(global_width_))}) {}

void RecurrentMixer::Declare(Declaration& declare) {
  const int64_t r = global_width_, g = global_blocks_, block = r / g;
  width_ = r / declare.tensor_size;
  blocks_ = g / declare.tensor_size;

  in_y_.Declare(declare);
  in_x_.Declare(declare);
  const auto add = [&](const char* name, Shape shape, int axis, bool decay, InitFn init,
                       bool full_precision = false) {
    return declare.params.Add({.name = declare.prefix + "rec." + name,
                               .shape = shape,
                               .shard_axis = axis,
                               .weight_decay = decay,
                               .full_precision = full_precision,
                               .init = std::move(init)});
  };
  conv_w_ = add("conv.w", {kTaps, r}, 1, true, InitNormal(std::sqrt(0.01 / kTaps)));
  conv_b_ = add("conv.b", {r}, 0, false, InitConstant(0.0));
  const InitFn gate_init = InitNormal(1.0 / std::sqrt(static_cast<double>(block)));
  gate_i_w_ = add("gate_i.w", {g, block, block}, 0, true, gate_init);
  gate_i_b_ = add("gate_i.b", {g, block}, 0, false, InitConstant(0.0));
  gate_r_w_ = add("gate_r.w", {g, block, block}, 0, true, gate_init);
  gate_r_b_ = add("gate_r.b", {g, block}, 0, false, InitConstant(0.0));
  lambda_ = add("lambda", {r}, 0, false, DrawLambda, /*full_precision=*/true);
  out_.Declare(declare);

  conv_halo_ = declare.stash.AddKept("conv_halo", width_, [](int64_t tokens, int64_t chunk) {
    return HaloRows(tokens, chunk, kTaps - 1);
  });
  h0_ = declare.stash.AddKept(
      "h0", width_, [](int64_t, int64_t) { return 1; }, Holds::kFullPrecision);
  gate_ = declare.stash.Add("gate", width_);
  conv_in_ = declare.stash.Add("conv_in", width_);
  u_ = declare.stash.AddCheap("u", width_);
  zi_ = declare.stash.Add("zi", width_);
  zr_ = declare.stash.Add("zr", width_);
  h_ = declare.stash.Add("h", width_);
  product_ = declare.stash.AddCheap("product", width_);
}

void RecurrentMixer::DeclareState(StateTable& table) const {
  table.Add("conv", kTaps - 1, width_);
  table.Add("h", 1, width_, Holds::kFullPrecision);
}

void RecurrentMixer::Gate(Run& run, ParamId weight, ParamId bias, const Tensor& u,
                          const Tensor& z) const {
  const int64_t block = width_ / blocks_;
  Gemm({.trans_b = Trans::kYes,
        .m = u.size() / width_,
        .n = block,
        .k = block,
        .a = u,
        .lda = width_,
        .b = run.params.value(weight),
        .ldb = block,
        .c = z,
        .ldc = width_,
        .bias = run.params.value(bias),
        .batch = blocks_,
        .stride_a = block,
        .stride_b = block * block,
        .stride_c = block});
}

void RecurrentMixer::GateBackwardInput(Run& run, ParamId weight, const Tensor& dz,
                                       const Tensor& du) const {
  const int64_t block = width_ / blocks_;
  Gemm({.m = dz.size() / width_,
        .n = block,
        .k = block,
        .a = dz,
        .lda = width_,
        .b = run.params.value(weight),
        .ldb = block,
        .c = du,
        .ldc = width_,
        .accumulate = true,
        .batch = blocks_,
        .stride_a = block,
        .stride_b = block * block,
        .stride_c = block});
}

void RecurrentMixer::GateBackwardWeight(Run& run, ParamId weight, ParamId bias, const Tensor& u,
                                        const Tensor& dz) const {
  const int64_t block = width_ / blocks_;
  Gemm({.trans_a = Trans::kYes,
        .m = block,
        .n = block,
        .k = u.size() / width_,
        .a = dz,
        .lda = width_,
        .b = u,
        .ldb = width_,
        .c = run.params.grad(weight),
        .ldc = block,
        .accumulate = true,
        .batch = blocks_,
        .stride_a = block,
        .stride_b = block,
        .stride_c = block * block});
  ArenaScope scope(run.arena);
  SumRows(dz, run.params.grad(bias).View({width_}), run.Workspace(SumRowsWorkspace(dz)));
}

void RecurrentMixer::Convolve(Run& run, const Stash& stash, const Carry& carry,
                              const Tensor& x_last) const {
  CausalConv1dForward({.x = stash[conv_in_],
                       .weight = run.params.value(conv_w_),
                       .bias = run.params.value(conv_b_),
                       .positions = run.positions,
                       .x0 = ConvBefore(run, stash, carry),
                       .y = stash[u_],
                       .x_last = x_last});
}

void RecurrentMixer::Multiply(const Stash& stash) const {
  GluForward({.gate = stash[gate_], .value = stash[h_], .out = stash[product_]});
}

void RecurrentMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry& carry) const {
  Convolve(run, stash, carry, /*x_last=*/{});
  Multiply(stash);
}

void RecurrentMixer::Forward(Run& run, const Tensor& x, const Tensor& y, Stash& stash,
                             const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const bool exchanges = split && run.pass != Pass::kRecompute;

  // The last rows' projection goes first: it travels under the projection of all.
  std::optional<HaloExchange> halo;
  if (exchanges) {
    const Tensor tail_x = run.arena.Allocate(x.dtype, {run.batch(), kTaps - 1, x.dim(2)});
    const Tensor tail = run.arena.Allocate(x.dtype, {run.batch(), kTaps - 1, width_});
    CopyRows(x, run.tokens() - (kTaps - 1), tail_x, 0, kTaps - 1);
    in_x_.Forward(run, tail_x, tail);
    halo.emplace(sequence, run.arena, tail, run.tokens(), kTaps - 1, stash[conv_halo_]);
  }
  in_x_.Forward(run, x, stash[conv_in_]);
  if (halo) halo->Wait();
  Convolve(run, stash, carry, StateSlot(carry.after, kConvState));
  Event handed_on;
  if (carry.after != nullptr) {
    handed_on = sequence.Broadcast((*carry.after)[kConvState], /*root=*/sequence.size() - 1);
  }
  Gate(run, gate_i_w_, gate_i_b_, stash[u_], stash[zi_]);
  Gate(run, gate_r_w_, gate_r_b_, stash[u_], stash[zr_]);

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
  in_y_.Forward(run, x, stash[gate_]);
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
  out_.Forward(run, stash[product_], y);
  out_.Reduce(run, y);
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
  GluBackward({.gate = stash[gate_], .value = stash[h_], .dout = dh, .dgate = dgate, .dvalue = dh});

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
                 .workspace = run.Workspace(RgLruBackwardWorkspace(stash[u_]))});
  GateBackwardInput(run, gate_i_w_, dzi, du);
  GateBackwardInput(run, gate_r_w_, dzr, du);

  const bool first = sequence.rank() == 0, last = sequence.rank() == sequence.size() - 1;
  Tensor dhalo = StateSlot(carry_grad.before, kConvState);
  if (!first) dhalo = run.arena.Allocate(x.dtype, stash[conv_halo_].shape);
  CausalConv1dBackward(
      {.x = stash[conv_in_],
       .weight = run.params.value(conv_w_),
       .positions = run.positions,
       .x0 = ConvBefore(run, stash, carry),
       .dy = du,
       .dx_last = last ? StateSlot(carry_grad.after, kConvState) : Tensor{},
       .dx = dconv_in,
       .dx0 = dhalo,
       .dweight = run.params.grad(conv_w_),
       .dbias = run.params.grad(conv_b_),
       .workspace = run.Workspace(CausalConv1dBackwardWorkspace(stash[conv_in_], kTaps))});
  Event handed_back;
  if (carry_grad.before != nullptr) {
    handed_back = sequence.Broadcast((*carry_grad.before)[kConvState], /*root=*/0);
  }
  std::optional<HaloGradExchange> halo_grad;
  if (split) {
    halo_grad.emplace(sequence, run.arena, dhalo, run.tokens(), kTaps - 1, dconv_in);
  }
  GateBackwardWeight(run, gate_i_w_, gate_i_b_, stash[u_], dzi);
  GateBackwardWeight(run, gate_r_w_, gate_r_b_, stash[u_], dzr);
  if (halo_grad) halo_grad->Wait();
  handed_back.Wait();

  // The sum of dx over tensor ranks travels while the weights' gradients are computed.
  in_x_.BackwardInput(run, dconv_in, dx, /*accumulate=*/true);
  Event reduced = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  in_x_.BackwardWeight(run, x, dconv_in);
  in_y_.BackwardWeight(run, x, dgate);
  reduced.Wait();
}

Tensor RecurrentMixer::ConvBefore(const Run& run, const Stash& stash, const Carry& carry) const {
  return run.mesh.sequence().rank() > 0 ? stash[conv_halo_] : StateSlot(carry.before, kConvState);
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
          /*min_chunk=*/kTaps - 1};
}

}  // namespace eyrie
