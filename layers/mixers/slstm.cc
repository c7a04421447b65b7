#include "layers/mixers/slstm.h"

#include <algorithm>
#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "kernels/norm/layer_norm.h"
#include "layers/columns.h"
#include "layers/xlstm_init.h"

namespace eyrie {
namespace {

constexpr SlotId kFirstState = 1;  // behind the convolution's
constexpr int64_t kGates = 4, kForget = 1;

BlockLinear Maps(const char* name, const config::ModelConfig& model) {
  return BlockLinear({.name = name,
                      .width = model.width(),
                      .blocks = model.slstm().heads(),
                      .maps = 2,
                      .spread = kGates * (model.width() / model.slstm().heads()),
                      .init_std = XlstmInStd(model)});
}

}  // namespace

SlstmMixer::SlstmMixer(const config::ModelConfig& model, int64_t block)
    : global_width_(model.width()),
      global_heads_(model.slstm().heads()),
      block_(block),
      depth_(model.depth()),
      epsilon_(model.norm_epsilon()),
      exponential_forget_(model.slstm().forget_gate() == config::MlstmConfig::EXPONENTIAL),
      conv_({.name = "slstm.conv",
             .width = global_width_,
             .weight_init = InitUniform(0.5),
             .bias_init = InitUniform(0.5),
             .silu = true}),
      if_(Maps("slstm.if", model)),
      zo_(Maps("slstm.zo", model)) {}

void SlstmMixer::Declare(Declaration& declare) {
  const int64_t heads = global_heads_, units = global_width_ / heads;
  width_ = global_width_ / declare.tensor_size;
  heads_ = heads / declare.tensor_size;
  conv_.Declare(declare);
  if_.Declare(declare);
  zo_.Declare(declare);
  const auto add = [&](const char* name, Shape shape, bool decay, InitFn init,
                       bool full_precision = false) {
    return declare.params.Add({.name = declare.prefix + "slstm." + name,
                               .shape = shape,
                               .shard_axis = 0,
                               .weight_decay = decay,
                               .full_precision = full_precision,
                               .init = std::move(init)});
  };
  r_ = add("r.w", {heads, units, kGates, units}, true, InitConstant(0.0));
  // The forget gates' bias falls from 5 to -7 over the units of a head, in later blocks later: what
  // is remembered for long comes first.
  const double place =
      static_cast<double>(block_) / static_cast<double>(std::max<int64_t>(1, depth_ - 1));
  const auto draw_bias = [units, place](const Random&, uint64_t index) {
    const auto element = static_cast<int64_t>(index);
    if (element / units % kGates != kForget) return 0.0;
    const double unit =
        static_cast<double>(element % units) / static_cast<double>(std::max<int64_t>(1, units - 1));
    return 5.0 - 12.0 * std::pow(unit, 0.3 + 1.3 * place);
  };
  bias_ = add("b", {heads, kGates, units}, false, draw_bias, /*full_precision=*/true);
  norm_ = add("norm.w", {heads, units}, false, InitConstant(0.0));

  const auto behind = [](const ChunkPlace& chunk) { return HaloRows(chunk, 1); };
  for (int part = 0; part < kParts; ++part) {
    before_[part] =
        declare.stash.AddKept(StrCat("before_", part), width_, behind, Holds::kFullPrecision);
  }
  s_ = declare.stash.AddCheap("s", width_);
  packed_ = declare.stash.Add("gates", kGates * width_);
  cell_ = declare.stash.Add("cell", width_);
  statistics_ = declare.stash.Add("cell_norm", 2 * heads_, Holds::kFullPrecision);
}

void SlstmMixer::DeclareState(StateTable& table) const {
  conv_.DeclareState(table);
  table.Add("y", 1, width_, Holds::kFullPrecision);
  const SlotId c = table.Add("c", 1, width_, Holds::kFullPrecision);
  const SlotId n = table.Add("n", 1, width_, Holds::kFullPrecision);
  table.AddLogScale("m", 1, width_, {c, n});
}

std::vector<Tensor> SlstmMixer::Slots(const State* state, int parts) const {
  std::vector<Tensor> result;
  for (int part = 0; state != nullptr && part < parts; ++part) {
    result.push_back((*state)[kFirstState + part]);
  }
  return result;
}

std::vector<Tensor> SlstmMixer::NewState(Run& run, int parts) const {
  std::vector<Tensor> result;
  for (int part = 0; part < parts; ++part) {
    result.push_back(
        run.arena.Allocate(FullPrecision(run.params.dtype()), {run.batch(), 1, width_}));
  }
  return result;
}

SlstmState SlstmMixer::View(const Run& run, const std::vector<Tensor>& parts) const {
  const auto part = [&](size_t i) {
    if (i >= parts.size()) return Tensor{};
    return parts[i].View({run.batch(), heads_, width_ / heads_});
  };
  return {part(0), part(1), part(2), part(3)};
}

std::vector<Tensor> SlstmMixer::Before(const Run& run, const Stash& stash,
                                       const Carry& carry) const {
  if (run.mesh.sequence().rank() == 0) return Slots(carry.before, kParts);
  std::vector<Tensor> result;
  for (const SlotId slot : before_) result.push_back(stash[slot]);
  return result;
}

Tensor SlstmMixer::Heads(const Tensor& tensor) const {
  return tensor.View({tensor.dim(0), tensor.dim(1), heads_, width_ / heads_});
}

Tensor SlstmMixer::Packed(const Tensor& tensor) const {
  return tensor.View({tensor.dim(0), tensor.dim(1), heads_, kGates, width_ / heads_});
}

Tensor SlstmMixer::LastGates(const Tensor& packed) const {
  return packed.View({packed.size()}).Rows(kGates / 2 * (width_ / heads_), packed.size());
}

void SlstmMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry& carry) const {
  conv_.Refill(run, stash[s_], stash, carry);
}

void SlstmMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                         const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool recomputes = run.pass == Pass::kRecompute;
  const Tensor packed = Packed(stash[packed_]), cell = Heads(stash[cell_]);
  const auto project = [&](const Tensor& rows, const Tensor& inputs) {
    OwnColumns(run, rows, inputs);
  };
  Event handed_on = conv_.Forward(run, x, project, stash[s_], stash, carry);
  if_.Forward(run, stash[s_], packed);
  zo_.Forward(run, conv_.inputs(stash), LastGates(packed));

  const bool last = sequence.rank() == sequence.size() - 1;
  const std::vector<Tensor> before = Before(run, stash, carry);
  const std::vector<Tensor> carried = Slots(carry.after, kParts);
  const std::vector<Tensor> leaving = last || recomputes ? carried : NewState(run, kParts);
  const auto step = [&] {
    ArenaScope workspace(run.arena);
    SlstmForward({.x = packed,
                  .r = run.params.value(r_),
                  .bias = run.params.value(bias_),
                  .positions = run.positions,
                  .exponential_forget = exponential_forget_,
                  .before = View(run, before),
                  .y = cell,
                  .after = View(run, leaving),
                  .workspace = run.Workspace(SlstmForwardWorkspace(packed))});
  };
  std::vector<Event> carried_on;
  if (recomputes) {
    step();
  } else {
    Relay(sequence, CarryScan::Direction::kForward, before, leaving, step);
    for (const Tensor& part : carried) {
      carried_on.push_back(sequence.Broadcast(part, /*root=*/sequence.size() - 1));
    }
  }

  const Tensor statistics = stash[statistics_].View({2, cell.size() / cell.dim(3)});
  const Tensor normed = run.Scratch(width_);
  LayerNormForward({.x = cell,
                    .weight = run.params.value(norm_),
                    .epsilon = epsilon_,
                    .y = Heads(normed),
                    .mean = statistics.Rows(0, 1),
                    .rstd = statistics.Rows(1, 2)});
  if (!recomputes) {
    GatherColumns(run, normed, out.y);
    if (out.residual.defined()) Add(out.residual, out.y, out.y);
  }
  handed_on.Wait();
  for (Event& event : carried_on) event.Wait();
}

void SlstmMixer::Backward(Run& run, const Tensor&, const Tensor& dy, const Tensor& dx, Stash& stash,
                          const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const Tensor packed = Packed(stash[packed_]), cell = Heads(stash[cell_]);
  const Tensor dcell = run.Scratch(width_), ds = run.Scratch(width_);
  const Tensor dpacked = Packed(run.Scratch(kGates * width_));
  OwnColumns(run, dy, ds);
  {
    ArenaScope workspace(run.arena);
    const Tensor statistics = stash[statistics_].View({2, cell.size() / cell.dim(3)});
    LayerNormBackward({.x = cell,
                       .weight = run.params.value(norm_),
                       .mean = statistics.Rows(0, 1),
                       .rstd = statistics.Rows(1, 2),
                       .dy = Heads(ds),
                       .dx = Heads(dcell),
                       .dweight = run.params.grad(norm_),
                       .workspace = run.Workspace(LayerNormBackwardWorkspace(cell))});
  }

  const bool first = sequence.rank() == 0, last = sequence.rank() == sequence.size() - 1;
  const std::vector<Tensor> entering =
      last ? Slots(carry_grad.after, kGradParts) : NewState(run, kGradParts);
  const std::vector<Tensor> carried = Slots(carry_grad.before, kGradParts);
  const std::vector<Tensor> leaving = first ? carried : NewState(run, kGradParts);
  Relay(sequence, CarryScan::Direction::kBackward, entering, leaving, [&] {
    ArenaScope workspace(run.arena);
    SlstmBackward({.x = packed,
                   .r = run.params.value(r_),
                   .bias = run.params.value(bias_),
                   .positions = run.positions,
                   .exponential_forget = exponential_forget_,
                   .before = View(run, Before(run, stash, carry)),
                   .y = cell,
                   .dy = Heads(dcell),
                   .dafter = View(run, entering),
                   .dx = dpacked,
                   .dr = run.params.grad(r_),
                   .dbias = run.params.grad(bias_),
                   .dbefore = View(run, leaving),
                   .workspace = run.Workspace(SlstmBackwardWorkspace(packed))});
  });
  std::vector<Event> carried_back;
  for (const Tensor& part : carried) {
    carried_back.push_back(sequence.Broadcast(part, /*root=*/0));
  }

  if_.BackwardInput(run, dpacked, ds, /*accumulate=*/false);
  const Tensor dconv = dcell;  // which has served
  CausalConvolution::Returning returning = conv_.Backward(run, ds, dconv, stash, carry, carry_grad);
  zo_.BackwardInput(run, LastGates(dpacked), dconv, /*accumulate=*/true);
  if_.BackwardWeight(run, stash[s_], dpacked);
  returning.Wait();
  // The gradient of x is gathered while the other weights' gradients are computed.
  ColumnGather gathered(run, dconv, dx);
  zo_.BackwardWeight(run, conv_.inputs(stash), LastGates(dpacked));
  gathered.Wait();
  for (Event& event : carried_back) event.Wait();
}

MixerEntry SlstmMixerEntry() {
  return {"slstm",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            const int64_t heads = model.slstm().heads();
            errors.RequireDivisible("model.slstm.heads", heads, "parallel.tensor", tensor);
            errors.RequireDivisible("model.width", model.width(), "model.slstm.heads", heads);
          },
          [](const config::ModelConfig& model, int64_t block) -> std::unique_ptr<Mixer> {
            return std::make_unique<SlstmMixer>(model, block);
          },
          /*min_chunk=*/CausalConvolution::kHalo};
}

}  // namespace eyrie
