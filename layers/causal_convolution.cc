#include "layers/causal_convolution.h"

#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/elementwise/elementwise.h"

namespace eyrie {

void CausalConvolution::Declare(Declaration& declare) {
  width_ = options_.width / declare.tensor_size;
  weight_ = declare.params.Add({.name = declare.prefix + options_.name + ".w",
                                .shape = {kTaps, options_.width},
                                .shard_axis = 1,
                                .weight_decay = true,
                                .init = options_.weight_init});
  bias_ = declare.params.Add({.name = declare.prefix + options_.name + ".b",
                              .shape = {options_.width},
                              .shard_axis = 0,
                              .init = options_.bias_init});
  halo_ = declare.stash.AddKept("conv_halo", width_,
                                [](const ChunkPlace& chunk) { return HaloRows(chunk, kHalo); });
  inputs_ = declare.stash.Add("conv_in", width_);
}

void CausalConvolution::DeclareState(StateTable& table) const {
  EYRIE_CHECK(table.slots().size() == kState);
  table.Add("conv", kHalo, width_);
}

Tensor CausalConvolution::Before(const Run& run, const Stash& stash, const Carry& carry) const {
  return run.mesh.sequence().rank() > 0 ? stash[halo_] : StateSlot(carry.before, kState);
}

void CausalConvolution::Convolve(Run& run, const Stash& stash, const Carry& carry, const Tensor& y,
                                 const Tensor& x_last) const {
  CausalConv1dForward({.x = stash[inputs_],
                       .weight = run.params.value(weight_),
                       .bias = run.params.value(bias_),
                       .positions = run.positions,
                       .x0 = Before(run, stash, carry),
                       .y = y,
                       .x_last = x_last,
                       .silu = options_.silu});
}

Event CausalConvolution::Forward(Run& run, const Tensor& x, const Project& project,
                                 const Tensor& out, Stash& stash, const Carry& carry) const {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  std::optional<HaloExchange> halo;
  if (sequence.size() > 1 && run.pass != Pass::kRecompute) {
    const Tensor tail_x = run.arena.Allocate(x.dtype, {run.batch(), kHalo, x.dim(2)});
    const Tensor tail = run.arena.Allocate(x.dtype, {run.batch(), kHalo, width_});
    CopyRows(x, run.tokens() - kHalo, tail_x, 0, kHalo);
    project(tail_x, tail);
    halo.emplace(sequence, run.arena, tail, run.tokens(), kHalo, stash[halo_]);
  }
  project(x, stash[inputs_]);
  if (halo) halo->Wait();
  Convolve(run, stash, carry, out, StateSlot(carry.after, kState));
  Event handed_on;
  if (carry.after != nullptr) {
    handed_on = sequence.Broadcast((*carry.after)[kState], /*root=*/sequence.size() - 1);
  }
  return handed_on;
}

void CausalConvolution::Refill(Run& run, const Tensor& out, Stash& stash,
                               const Carry& carry) const {
  Convolve(run, stash, carry, out, {});
}

CausalConvolution::Returning CausalConvolution::Backward(Run& run, const Tensor& dout,
                                                         const Tensor& dinputs, Stash& stash,
                                                         const Carry& carry,
                                                         const CarryGrad& carry_grad,
                                                         const Tensor& dinputs_sum) const {
  Communicator& sequence = run.mesh.sequence();
  const bool first = sequence.rank() == 0, last = sequence.rank() == sequence.size() - 1;
  Tensor dhalo = StateSlot(carry_grad.before, kState);
  if (!first) dhalo = run.arena.Allocate(dinputs.dtype, stash[halo_].shape);
  {
    ArenaScope scope(run.arena);
    CausalConv1dBackward(
        {.x = stash[inputs_],
         .weight = run.params.value(weight_),
         .positions = run.positions,
         .x0 = Before(run, stash, carry),
         .dy = dout,
         .dx_last = last ? StateSlot(carry_grad.after, kState) : Tensor{},
         .dx = dinputs,
         .dx0 = dhalo,
         .dweight = run.params.grad(weight_),
         .dbias = run.params.grad(bias_),
         .dx_sum = dinputs_sum,
         .workspace = run.Workspace(CausalConv1dBackwardWorkspace(stash[inputs_], kTaps)),
         .silu = options_.silu,
         .bias = run.params.value(bias_)});
    if (dinputs_sum.defined() && !first) {
      SumRows(dhalo, dinputs_sum, run.Workspace(SumRowsWorkspace(dhalo)));
    }
  }
  Returning returning;
  if (carry_grad.before != nullptr) {
    returning.state_ = sequence.Broadcast((*carry_grad.before)[kState], /*root=*/0);
  }
  if (sequence.size() > 1) {
    returning.halo_.emplace(sequence, run.arena, dhalo, run.tokens(), kHalo, dinputs);
  }
  return returning;
}

void CausalConvolution::Returning::Wait() {
  if (halo_) halo_->Wait();
  state_.Wait();
}

}  // namespace eyrie
