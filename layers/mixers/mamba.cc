#include "layers/mixers/mamba.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/blas.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/selective_scan/selective_scan.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {
namespace {

constexpr int64_t kMostStates = 64;
constexpr SlotId kHiddenSlot = 1;  // beside the convolution's

int64_t Rank(const config::ModelConfig& model) {
  return model.mamba().dt_rank() > 0 ? model.mamba().dt_rank() : (model.width() + 15) / 16;
}

// What makes an activation of `inputs` numbers, as the released code starts it.
InitFn InitFanIn(int64_t inputs, double factor = 1.0) {
  return InitUniform(factor / std::sqrt(static_cast<double>(inputs)));
}

// The bias that gives a step size delta, log-uniform in [0.001, 0.1]: softplus is undone.
double DrawDtBias(const Random& random, uint64_t index) {
  const double low = std::log(0.001), high = std::log(0.1);
  const double delta = std::exp(low + (high - low) * random.Uniform(index));
  return delta + std::log(-std::expm1(-delta));
}

}  // namespace

MambaMixer::MambaMixer(const config::ModelConfig& model)
    : global_width_(model.mamba().width()),
      states_(model.mamba().states()),
      rank_(Rank(model)),
      input_dependent_(model.mamba().input_dependent()),
      in_({.name = "ssm.in",
           .in = model.width(),
           .out = global_width_,
           .maps = 2,
           .bias = false,
           .init = InitFanIn(model.width())}),
      conv_({.name = "ssm.conv",
             .width = global_width_,
             .weight_init = InitFanIn(CausalConvolution::kTaps),
             .bias_init = InitFanIn(CausalConvolution::kTaps),
             .silu = true}),
      project_({.name = "ssm.xp",
                .in = global_width_,
                .out = rank_ + 2 * states_,
                .cut = Linear::Cut::kRows,
                .bias = false,
                .init = InitFanIn(global_width_)}),
      dt_({.name = "ssm.dt",
           .in = rank_,
           .out = global_width_,
           .row = rank_ + 2 * states_,
           .bias = false,
           .init = InitFanIn(rank_)}),
      // Divided by the square root of the number of residual branches.
      out_({.name = "ssm.out",
            .in = global_width_,
            .out = model.width(),
            .cut = Linear::Cut::kRows,
            .bias = false,
            .init = InitFanIn(global_width_, 1 / std::sqrt(static_cast<double>(model.depth())))}) {}

void MambaMixer::Declare(Declaration& declare) {
  const int64_t e = global_width_, states = states_;
  width_ = e / declare.tensor_size;
  const auto add = [&](const char* name, Shape shape, InitFn init) {
    return declare.params.Add({.name = declare.prefix + "ssm." + name,
                               .shape = shape,
                               .shard_axis = 0,
                               .full_precision = true,
                               .init = std::move(init)});
  };
  in_.Declare(declare);
  conv_.Declare(declare);
  if (input_dependent_) {
    project_.Declare(declare);
    dt_.Declare(declare);
  } else {
    // B of ones and a normal C, as state space models start (Gu et al., arXiv:2206.11893).
    bc_ = declare.params.Add({.name = declare.prefix + "ssm.bc",
                              .shape = {2, states},
                              .partial_gradient = true,
                              .init = [states](const Random& random, uint64_t index) {
                                return index < static_cast<uint64_t>(states) ? 1.0
                                                                             : random.Normal(index);
                              }});
  }
  const auto draw_a_log = [states](const Random&, uint64_t index) {
    return std::log(static_cast<double>(index % static_cast<uint64_t>(states) + 1));
  };
  dt_b_ = add("dt.b", {e}, DrawDtBias);
  a_log_ = add("A_log", {e, states}, draw_a_log);
  skip_ = add("D", {e}, InitConstant(1.0));
  out_.Declare(declare);

  h0_ = declare.stash.AddKept("h0", width_ * states_, StashTable::EnteringState,
                              Holds::kFullPrecision);
  if (input_dependent_) {
    projected_ = declare.stash.AddKept("projected", project_.local_out(), StashTable::EachToken);
  }
  v_ = declare.stash.AddCheap("v", width_);
  z_ = declare.stash.Add("z", width_);
  product_ = declare.stash.Add("product", width_);
}

void MambaMixer::DeclareState(StateTable& table) const {
  conv_.DeclareState(table);
  table.Add("h", width_, states_, Holds::kFullPrecision);
}

Tensor MambaMixer::Projected(Run& run, const Stash& stash) const {
  if (input_dependent_) return stash[projected_];
  const Tensor constants = run.Scratch(2 * states_);
  BroadcastRows(run.params.value(bc_).View({2 * states_}), constants);
  return constants;
}

void MambaMixer::Dt(Run& run, const Tensor& projected, const Tensor& dt) const {
  input_dependent_ ? dt_.Forward(run, projected, dt) : FillZero(dt);
}

void MambaMixer::Refill(Run& run, const Tensor&, Stash& stash, const Carry& carry) const {
  conv_.Refill(run, stash[v_], stash, carry);
}

void MambaMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                         const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const bool recomputes = run.pass == Pass::kRecompute;
  const bool exchanges = split && !recomputes;

  const auto project = [&](const Tensor& rows, const Tensor& inputs) {
    in_.Forward(run, rows, inputs, kX);
  };
  Event handed_on = conv_.Forward(run, x, project, stash[v_], stash, carry);

  // The sum over tensor ranks travels under the gate's projection.
  const Tensor projected = Projected(run, stash);
  Event reduced;
  if (input_dependent_ && !recomputes) {
    project_.Forward(run, stash[v_], projected);
    reduced = run.mesh.tensor().AllReduce(projected, ReduceOp::kSum);
  }
  in_.Forward(run, x, stash[z_], kZ);
  reduced.Wait();
  const Tensor dt = run.Scratch(width_);
  Dt(run, projected, dt);

  const Shape state{run.batch(), width_, states_};
  if (exchanges) {
    const Tensor decay = run.arena.Allocate(FullPrecision(x.dtype), state);
    const Tensor increment = run.arena.Allocate(FullPrecision(x.dtype), state);
    SelectiveScanSummary(
        {.x = stash[v_],
         .dt = dt,
         .bc = projected,
         .a_log = run.params.value(a_log_),
         .dt_bias = run.params.value(dt_b_),
         .positions = run.positions,
         .decay = decay,
         .increment = increment,
         .workspace = run.Workspace(SelectiveScanSummaryWorkspace(stash[v_], states_))});
    CarryScan(sequence, run.arena,
              {.decay = decay,
               .increment = increment,
               .first = HiddenState(run, carry.before),
               .entering = stash[h0_],
               .leaving = HiddenState(run, carry.after)},
              CarryScan::Direction::kForward)
        .Wait();
  }
  SelectiveScanForward(
      {.x = stash[v_],
       .dt = dt,
       .z = stash[z_],
       .bc = projected,
       .a_log = run.params.value(a_log_),
       .skip = run.params.value(skip_),
       .dt_bias = run.params.value(dt_b_),
       .positions = run.positions,
       .h0 = InitialState(run, stash, carry),
       .out = stash[product_],
       // With other ranks, the state after all of their chunks is the scan's.
       .h_last = split ? Tensor{} : HiddenState(run, carry.after),
       .workspace = run.Workspace(SelectiveScanForwardWorkspace(stash[v_], states_))});
  handed_on.Wait();
  if (recomputes) return;
  out_.Forward(run, stash[product_], out);
}

void MambaMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                          Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const Tensor projected = Projected(run, stash);
  const Tensor dt = run.Scratch(width_), ddt = run.Scratch(width_), dv = run.Scratch(width_);
  const Tensor dz = run.Scratch(width_), dconv_in = run.Scratch(width_);
  const Tensor dprojected = run.Scratch(projected.dim(-1));

  out_.BackwardInput(run, dy, dz, /*accumulate=*/false);
  Dt(run, projected, dt);
  const Shape state{run.batch(), width_, states_};
  Tensor dh_last = HiddenState(run, carry_grad.after), dh0 = HiddenState(run, carry_grad.before);
  std::optional<CarryScan> scan;
  if (split) {
    const Tensor decay = run.arena.Allocate(FullPrecision(x.dtype), state);
    const Tensor increment = run.arena.Allocate(FullPrecision(x.dtype), state);
    const Tensor entering = run.arena.Allocate(FullPrecision(x.dtype), state);
    SelectiveScanGradSummary(
        {.dt = dt,
         .z = stash[z_],
         .bc = projected,
         .a_log = run.params.value(a_log_),
         .dt_bias = run.params.value(dt_b_),
         .positions = run.positions,
         .dout = dz,
         .decay = decay,
         .increment = increment,
         .workspace = run.Workspace(SelectiveScanSummaryWorkspace(dz, states_))});
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
  if (scan) scan->Wait();
  SelectiveScanBackward(
      {.x = stash[v_],
       .dt = dt,
       .z = stash[z_],
       .bc = projected,
       .a_log = run.params.value(a_log_),
       .skip = run.params.value(skip_),
       .dt_bias = run.params.value(dt_b_),
       .positions = run.positions,
       .h0 = InitialState(run, stash, carry),
       .dout = dz,
       .dh_last = dh_last,
       .dx = dv,
       .ddt = ddt,
       .dz = dz,
       .dbc = dprojected,
       .dh0 = dh0,
       .da_log = run.params.grad(a_log_),
       .dskip = run.params.grad(skip_),
       .ddt_bias = run.params.grad(dt_b_),
       .workspace = run.Workspace(SelectiveScanBackwardWorkspace(stash[v_], states_))});

  // The sum over tensor ranks travels under products that do not need it.
  Event reduced;
  if (input_dependent_) {
    dt_.BackwardInput(run, ddt, dprojected, /*accumulate=*/false);
    reduced = run.mesh.tensor().AllReduce(dprojected, ReduceOp::kSum);
    dt_.BackwardWeight(run, projected, ddt);
  }
  in_.BackwardInput(run, dz, dx, /*accumulate=*/false, kZ);
  in_.BackwardWeight(run, x, dz, kZ);
  reduced.Wait();
  if (input_dependent_) {
    project_.BackwardInput(run, dprojected, dv, /*accumulate=*/true);
  } else {
    SumRows(dprojected, run.params.grad(bc_).View({2 * states_}),
            run.Workspace(SumRowsWorkspace(dprojected)));
  }

  CausalConvolution::Returning returning =
      conv_.Backward(run, dv, dconv_in, stash, carry, carry_grad);
  if (input_dependent_) project_.BackwardWeight(run, stash[v_], dprojected);
  returning.Wait();

  in_.BackwardInput(run, dconv_in, dx, /*accumulate=*/true, kX);
  Event summed = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  in_.BackwardWeight(run, x, dconv_in, kX);
  summed.Wait();
}

Tensor MambaMixer::InitialState(const Run& run, const Stash& stash, const Carry& carry) const {
  if (run.mesh.sequence().size() == 1) return HiddenState(run, carry.before);
  return stash[h0_].View({run.batch(), width_, states_});
}

Tensor MambaMixer::HiddenState(const Run& run, const State* state) const {
  if (state == nullptr) return {};
  return (*state)[kHiddenSlot].View({run.batch(), width_, states_});
}

MixerEntry MambaMixerEntry() {
  MixerEntry entry{
      "mamba",
      [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
        const auto& own = model.mamba();
        errors.RequireDivisible("model.mamba.width", own.width(), "parallel.tensor", tensor);
        if (own.states() < 1 || own.states() > kMostStates) {
          errors.Add("model.mamba.states = ", own.states(), " is not from 1 to ", kMostStates);
        }
        if (own.dt_rank() < 0) errors.Add("model.mamba.dt_rank must not be negative");
        if (own.dt_rank() > 0 && !own.input_dependent()) {
          errors.Add("model.mamba.dt_rank is set, but input_dependent is false");
        }
      },
      [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
        return std::make_unique<MambaMixer>(model);
      },
      /*min_chunk=*/CausalConvolution::kHalo};
  entry.complete = [](config::ModelConfig& model) {
    if (model.mamba().input_dependent()) model.mutable_mamba()->set_dt_rank(Rank(model));
  };
  return entry;
}

}  // namespace eyrie
