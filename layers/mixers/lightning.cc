#include "layers/mixers/lightning.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "core/tensor_math.h"
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/lightning_attention/lightning_attention.h"
#include "kernels/lrpe/lrpe.h"
#include "layers/registry.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {
namespace {

constexpr char kName[] = "lightning_attention";
constexpr SlotId kState = 0;
constexpr double kInitStd = 0.02;

Linear In(const char* name, const config::ModelConfig& model) {
  const config::LightningAttentionConfig& own = model.lightning_attention();
  return Linear({.name = name,
                 .in = model.width(),
                 .out = own.heads() * own.head_width(),
                 .cut = Linear::Cut::kColumns,
                 .bias = false,
                 .init_std = kInitStd});
}

std::vector<double> DecayRates(int64_t heads, int64_t block, int64_t depth) {
  std::vector<double> rates = AlibiSlopes(heads);
  const double place =
      static_cast<double>(block) / static_cast<double>(std::max<int64_t>(1, depth - 1));
  for (double& rate : rates) rate *= 1.0 - place + 1e-5;
  return rates;
}

}  // namespace

std::vector<double> AlibiSlopes(int64_t heads) {
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<double> slopes;
  const auto slope = [](int64_t h, int64_t of) {
    return std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(of));
  };
  for (int64_t h = 0; h < power; ++h) slopes.push_back(slope(h, power));
  for (int64_t h = 0; h < heads - power; ++h) slopes.push_back(slope(2 * h, 2 * power));
  return slopes;
}

LightningAttentionMixer::LightningAttentionMixer(const config::ModelConfig& model, int64_t block)
    : global_heads_(model.lightning_attention().heads()),
      head_width_(model.lightning_attention().head_width()),
      epsilon_(model.norm_epsilon()),
      rotates_(block == 0),
      rates_(DecayRates(global_heads_, block, model.depth())),
      q_(In("light.q", model)),
      k_(In("light.k", model)),
      v_(In("light.v", model)),
      gate_(In("light.gate", model)),
      out_({.name = "light.out",
            .in = global_heads_ * head_width_,
            .out = model.width(),
            .cut = Linear::Cut::kRows,
            .bias = false,
            .init_std = kInitStd}) {}

void LightningAttentionMixer::Declare(Declaration& declare) {
  q_.Declare(declare);
  k_.Declare(declare);
  v_.Declare(declare);
  gate_.Declare(declare);
  out_.Declare(declare);
  if (rotates_) {
    const double channels = static_cast<double>(global_heads_ * head_width_);
    theta_ = declare.params.Add({.name = declare.prefix + "light.theta",
                                 .shape = {global_heads_, head_width_},
                                 .shard_axis = 0,
                                 .init = [channels](const Random&, uint64_t index) {
                                   return std::pow(10000.0,
                                                   -2.0 * static_cast<double>(index) / channels);
                                 }});
  }
  heads_ = global_heads_ / declare.tensor_size;

  const int64_t width = heads_ * head_width_, rotated = rotates_ ? 2 : 1;
  s0_ = declare.stash.AddKept("s0", rotated * width * head_width_, StashTable::EnteringState,
                              Holds::kFullPrecision);
  squares_ = declare.stash.AddKept("squares", 1, StashTable::EachToken, Holds::kFullPrecision);
  q_out_ = declare.stash.Add("q", width);
  k_out_ = declare.stash.Add("k", width);
  v_out_ = declare.stash.Add("v", width);
  gate_out_ = declare.stash.Add("gate", width);
  o_ = declare.stash.Add("o", width);
  product_ = declare.stash.AddCheap("product", width);
}

void LightningAttentionMixer::DeclareState(StateTable& table) const {
  table.Add("s", 1, (rotates_ ? 2 : 1) * heads_ * head_width_ * head_width_, Holds::kFullPrecision);
}

double LightningAttentionMixer::ExtraFlops(int64_t, int64_t tokens) const {
  // A token's key and value enter the state and its query reads it.
  const int64_t keys = (rotates_ ? 2 : 1) * head_width_;
  return 4.0 * static_cast<double>(tokens * heads_ * keys * head_width_);
}

Tensor LightningAttentionMixer::Heads(const Tensor& tensor) const {
  return tensor.View({tensor.dim(0), tensor.dim(1), heads_, tensor.dim(2) / heads_});
}

Shape LightningAttentionMixer::StateShape(const Run& run) const {
  return {run.batch(), heads_, (rotates_ ? 2 : 1) * head_width_, head_width_};
}

Tensor LightningAttentionMixer::Rates(const Run& run) {
  const DType type = FullPrecision(run.params.dtype());
  const Device device = run.params.device();
  const Tensor& kept = local_rates_.tensor;
  if (kept.defined() && kept.dtype == type && kept.device == device) return kept;
  local_rates_ = OwnedTensor(type, {heads_}, device);
  if (IsMeta(device)) return kept;
  const OwnedTensor host(DType::kF64, {heads_}), rounded(type, {heads_});
  const auto first = rates_.begin() + run.mesh.tensor().rank() * heads_;
  std::copy(first, first + heads_, host.tensor.data<double>());
  Convert(host.tensor, rounded.tensor);
  Copy(rounded.tensor, kept);
  return kept;
}

Tensor LightningAttentionMixer::Theta(const Run& run) const {
  return rotates_ ? run.params.value(theta_) : Tensor{};
}

Tensor LightningAttentionMixer::Features(Run& run, const Tensor& projected) const {
  const Tensor features = Heads(run.Scratch((rotates_ ? 2 : 1) * projected.dim(2)));
  LrpeForward(
      {.x = Heads(projected), .theta = Theta(run), .positions = run.positions, .y = features});
  return features;
}

void LightningAttentionMixer::FeaturesBackward(Run& run, const Tensor& projected,
                                               const Tensor& dfeatures,
                                               const Tensor& dprojected) const {
  ArenaScope scope(run.arena);
  const Tensor x = Heads(projected);
  LrpeBackward({.x = x,
                .theta = Theta(run),
                .positions = run.positions,
                .dy = dfeatures,
                .dx = Heads(dprojected),
                .dtheta = rotates_ ? run.params.grad(theta_) : Tensor{},
                .workspace = run.Workspace(LrpeBackwardWorkspace(x, Theta(run)))});
}

Tensor LightningAttentionMixer::InitialState(const Run& run, const Stash& stash,
                                             const Carry& carry) const {
  if (run.mesh.sequence().size() > 1) return stash[s0_].View(StateShape(run));
  return carry.before == nullptr ? Tensor{} : (*carry.before)[kState].View(StateShape(run));
}

void LightningAttentionMixer::Refill(Run&, const Tensor&, Stash& stash, const Carry&) const {
  GatedNormForward({.x = stash[o_],
                    .gate = stash[gate_out_],
                    .squares = stash[squares_],
                    .width = global_heads_ * head_width_,
                    .epsilon = epsilon_,
                    .out = stash[product_]});
}

void LightningAttentionMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out,
                                      Stash& stash, const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator &sequence = run.mesh.sequence(), &tensor = run.mesh.tensor();
  const bool split = sequence.size() > 1, recompute = run.pass == Pass::kRecompute;
  const Shape state = StateShape(run);
  const Tensor rates = Rates(run);

  // What this chunk does to the state travels under the queries' projection.
  ForwardTogether(run, x, {{&k_, stash[k_out_]}, {&v_, stash[v_out_]}});
  const Tensor k = Features(run, stash[k_out_]), v = Heads(stash[v_out_]);
  const Tensor workspace = run.Workspace(LightningAttentionWorkspace(k, v));
  std::optional<CarryScan> scan;
  if (split && !recompute) {
    const Tensor decay = run.arena.Allocate(rates.dtype, {run.batch(), heads_});
    const Tensor increment = run.arena.Allocate(rates.dtype, state);
    LightningAttentionSummary({.k = k,
                               .v = v,
                               .rate = rates,
                               .positions = run.positions,
                               .decay = decay,
                               .increment = increment,
                               .workspace = workspace});
    scan.emplace(sequence, run.arena,
                 CarryScan::Args{.decay = decay,
                                 .increment = increment,
                                 .first = StateSlot(carry.before, kState),
                                 .entering = stash[s0_],
                                 .leaving = StateSlot(carry.after, kState)},
                 CarryScan::Direction::kForward);
  }
  q_.Forward(run, x, stash[q_out_]);
  const Tensor q = Features(run, stash[q_out_]);
  if (scan) scan->Wait();
  // With other ranks, the state after all of their chunks is the scan's.
  Tensor s_last;
  if (carry.after != nullptr && !split) s_last = (*carry.after)[kState].View(state);
  LightningAttentionForward({.q = q,
                             .k = k,
                             .v = v,
                             .rate = rates,
                             .positions = run.positions,
                             .s0 = InitialState(run, stash, carry),
                             .o = Heads(stash[o_]),
                             .s_last = s_last,
                             .workspace = workspace});

  // The norm spans the heads of all tensor ranks: the sums of squares travel under the gate's
  // projection, and are kept, so that recomputation need not send them again.
  Event summed;
  if (!recompute) {
    RowProducts({.a = stash[o_], .b = stash[o_], .sums = stash[squares_]});
    summed = tensor.AllReduce(stash[squares_], ReduceOp::kSum);
  }
  gate_.Forward(run, x, stash[gate_out_]);
  summed.Wait();
  Refill(run, x, stash, carry);
  if (recompute) return;
  out_.Forward(run, stash[product_], out);
}

void LightningAttentionMixer::Backward(Run& run, const Tensor& x, const Tensor& dy,
                                       const Tensor& dx, Stash& stash, const Carry& carry,
                                       const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  Communicator &sequence = run.mesh.sequence(), &tensor = run.mesh.tensor();
  const bool split = sequence.size() > 1;
  const Shape state = StateShape(run);
  const int64_t width = heads_ * head_width_;
  const Tensor dout = run.Scratch(width), dgate = run.Scratch(width);
  const Tensor dq = run.Scratch(width), dk = run.Scratch(width), dv = run.Scratch(width);
  const Tensor along = run.FullScratch(1), rates = Rates(run);

  out_.BackwardInput(run, dy, dout, /*accumulate=*/false);
  RowProducts({.a = dout, .b = stash[gate_out_], .c = stash[o_], .sums = along});
  Event summed = tensor.AllReduce(along, ReduceOp::kSum);
  out_.BackwardWeight(run, stash[product_], dy);
  const Tensor q = Features(run, stash[q_out_]), k = Features(run, stash[k_out_]);
  const Tensor v = Heads(stash[v_out_]);
  summed.Wait();
  GatedNormBackward({.x = stash[o_],
                     .gate = stash[gate_out_],
                     .squares = stash[squares_],
                     .width = global_heads_ * head_width_,
                     .epsilon = epsilon_,
                     .along = along,
                     .dout = dout,
                     .dx = dout,
                     .dgate = dgate});

  const Tensor workspace = run.Workspace(LightningAttentionWorkspace(k, v));
  Tensor ds_last, ds0;
  if (carry_grad.after != nullptr) ds_last = (*carry_grad.after)[kState].View(state);
  if (carry_grad.before != nullptr) ds0 = (*carry_grad.before)[kState].View(state);
  std::optional<CarryScan> scan;
  if (split) {
    const Tensor decay = run.arena.Allocate(rates.dtype, {run.batch(), heads_});
    const Tensor increment = run.arena.Allocate(rates.dtype, state);
    const Tensor entering = run.arena.Allocate(rates.dtype, state);
    LightningAttentionGradSummary({.q = q,
                                   .rate = rates,
                                   .positions = run.positions,
                                   .dout = Heads(dout),
                                   .decay = decay,
                                   .increment = increment,
                                   .workspace = workspace});
    scan.emplace(sequence, run.arena,
                 CarryScan::Args{.decay = decay,
                                 .increment = increment,
                                 .first = ds_last,
                                 .entering = entering,
                                 .leaving = ds0},
                 CarryScan::Direction::kBackward);
    ds_last = entering;
    ds0 = {};
  }
  gate_.BackwardInput(run, dgate, dx, /*accumulate=*/false);
  if (scan) scan->Wait();
  {
    ArenaScope features(run.arena);
    const Tensor dq_features = run.arena.Allocate(x.dtype, q.shape);
    const Tensor dk_features = run.arena.Allocate(x.dtype, k.shape);
    LightningAttentionBackward({.q = q,
                                .k = k,
                                .v = v,
                                .rate = rates,
                                .positions = run.positions,
                                .s0 = InitialState(run, stash, carry),
                                .dout = Heads(dout),
                                .ds_last = ds_last,
                                .dq = dq_features,
                                .dk = dk_features,
                                .dv = Heads(dv),
                                .ds0 = ds0,
                                .workspace = workspace});
    FeaturesBackward(run, stash[q_out_], dq_features, dq);
    FeaturesBackward(run, stash[k_out_], dk_features, dk);
  }

  // The sum of dx over tensor ranks travels while the weights' gradients are computed.
  q_.BackwardInput(run, dq, dx, /*accumulate=*/true);
  k_.BackwardInput(run, dk, dx, /*accumulate=*/true);
  v_.BackwardInput(run, dv, dx, /*accumulate=*/true);
  Event reduced = tensor.AllReduce(dx, ReduceOp::kSum);
  q_.BackwardWeight(run, x, dq);
  k_.BackwardWeight(run, x, dk);
  v_.BackwardWeight(run, x, dv);
  gate_.BackwardWeight(run, x, dgate);
  reduced.Wait();
}

MixerEntry LightningAttentionMixerEntry() {
  return {kName,
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            const config::LightningAttentionConfig& own = model.lightning_attention();
            errors.RequireDivisible("model.lightning_attention.heads", own.heads(),
                                    "parallel.tensor", tensor);
            errors.RequirePositive("model.lightning_attention.head_width", own.head_width());
          },
          [](const config::ModelConfig& model, int64_t block) -> std::unique_ptr<Mixer> {
            return std::make_unique<LightningAttentionMixer>(model, block);
          },
          /*min_chunk=*/1,
          [](const config::ModelConfig& model, DType, ConfigErrors& errors) {
            // In the first block features of positions make keys twice as wide.
            const bool first = SplitPatternEntry(model.pattern(0)).front() == kName;
            const int64_t most = kMaxLightningCudaWidth / (first ? 2 : 1);
            const int64_t width = model.lightning_attention().head_width();
            if (width <= most) return;
            errors.Add("model.lightning_attention.head_width = ", width, "; GPUs take at most ",
                       most, first ? " where it is the first block's" : "");
          }};
}

}  // namespace eyrie
