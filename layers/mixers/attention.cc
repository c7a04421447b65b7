#include "layers/mixers/attention.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/attention/attention.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/rotary/rotary.h"

namespace eyrie {
namespace {

constexpr SlotId kKeyState = 0, kValueState = 1;

Linear In(const char* name, int64_t in, int64_t out, Linear::Cut cut) {
  return Linear({.name = name,
                 .in = in,
                 .out = out,
                 .cut = cut,
                 .bias = false,
                 .init_std = std::sqrt(1.0 / static_cast<double>(in))});
}

}  // namespace

AttentionMixer::AttentionMixer(const config::ModelConfig& model, int64_t window)
    : window_(window),
      head_width_(model.attention().head_width()),
      rotary_base_(model.attention().rotary_base()),
      q_(In("att.q", model.width(), model.attention().heads() * head_width_,
            Linear::Cut::kColumns)),
      k_(In("att.k", model.width(), head_width_, Linear::Cut::kWholePartialGradient)),
      v_(In("att.v", model.width(), head_width_, Linear::Cut::kWholePartialGradient)),
      out_({.name = "att.out",
            .in = model.attention().heads() * head_width_,
            .out = model.width(),
            .cut = Linear::Cut::kRows,
            .init_std = std::sqrt(2.0 / static_cast<double>(model.depth()) /
                                  static_cast<double>(model.attention().heads() * head_width_))}) {}

void AttentionMixer::Declare(Declaration& declare) {
  q_.Declare(declare);
  k_.Declare(declare);
  v_.Declare(declare);
  out_.Declare(declare);
  heads_ = q_.local_out() / head_width_;
  const auto halo_rows = [reach = Reach()](const ChunkPlace& chunk) {
    return HaloRows(chunk, reach);
  };
  halo_k_ = declare.stash.AddKept("halo_k", head_width_, halo_rows);
  halo_v_ = declare.stash.AddKept("halo_v", head_width_, halo_rows);
  q_out_ = declare.stash.Add("q", q_.local_out());
  k_out_ = declare.stash.Add("k", head_width_);
  v_out_ = declare.stash.Add("v", head_width_);
  o_ = declare.stash.Add("o", q_.local_out());
  lse_ = declare.stash.Add("lse", heads_, Holds::kFullPrecision);
}

void AttentionMixer::DeclareState(StateTable& table) const {
  const int64_t rows = window_ == 0 ? table.capacity() : std::min(window_, table.capacity());
  table.Add("k", rows, head_width_);
  table.Add("v", rows, head_width_);
}

double AttentionMixer::ExtraFlops(int64_t before, int64_t tokens) const {
  // Each pair takes a product of dh elements for its score and another for its value.
  return 4.0 * static_cast<double>(q_.local_out()) * VisiblePairs(before, tokens, window_);
}

void AttentionMixer::Rotate(Run& run, const Tensor& heads, int64_t count, bool inverse) const {
  Rotary({.x = heads.View({run.batch(), run.tokens(), count, head_width_}),
          .positions = run.positions,
          .base = rotary_base_,
          .inverse = inverse});
}

Tensor AttentionMixer::Past(Run& run, const Tensor& before, const Tensor& halo) const {
  const int64_t near = halo.dim(1);
  const int64_t far = before.defined() ? std::min(before.dim(1), Reach() - near) : 0;
  if (near == 0) return far == 0 ? Tensor{} : before;
  if (far == 0) return halo;
  const Tensor past = run.arena.Allocate(halo.dtype, {run.batch(), far + near, head_width_});
  CopyRows(before, before.dim(1) - far, past, 0, far);
  CopyRows(halo, 0, past, far, near);
  return past;
}

Tensor AttentionMixer::HaloOf(Run& run, const Tensor& past, const Tensor& halo) const {
  const int64_t near = halo.dim(1);
  if (near == 0) return {};
  const Tensor part = run.arena.Allocate(halo.dtype, halo.shape);
  CopyRows(past, past.dim(1) - near, part, 0, near);
  return part;
}

Event AttentionMixer::StateGrad(Run& run, const Tensor& dpast, const Tensor& halo,
                                const CarryGrad& carry_grad, SlotId slot,
                                const Tensor& dnow) const {
  const Tensor dafter = StateSlot(carry_grad.after, slot);
  const Tensor dbefore = StateSlot(carry_grad.before, slot);
  if (dbefore.defined()) {
    FillZero(dbefore);
    const int64_t far = dpast.dim(1) - halo.dim(1);
    CopyRows(dpast, 0, dbefore, dbefore.dim(1) - far, far);
  }
  if (dafter.defined()) TailGrad(run.mesh.sequence(), dafter, dnow, dbefore);
  if (!dbefore.defined()) return Event();
  return run.mesh.sequence().AllReduce(dbefore, ReduceOp::kSum);
}

void AttentionMixer::Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                             const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;

  // Keys and values go first where those that later ranks see travel under the queries' projection.
  if (split) {
    ForwardTogether(run, x, {{&k_, stash[k_out_]}, {&v_, stash[v_out_]}});
  } else {
    ForwardTogether(run, x, {{&q_, stash[q_out_]}, {&k_, stash[k_out_]}, {&v_, stash[v_out_]}});
  }
  Rotate(run, stash[k_out_], 1, /*inverse=*/false);
  std::optional<HaloExchange> halo_k, halo_v;
  std::optional<TailExchange> tail_k, tail_v;
  if (split && run.pass != Pass::kRecompute) {
    halo_k.emplace(sequence, run.arena, stash[k_out_], run.tokens(), Reach(), stash[halo_k_]);
    halo_v.emplace(sequence, run.arena, stash[v_out_], run.tokens(), Reach(), stash[halo_v_]);
  }
  if (carry.after != nullptr) {
    tail_k.emplace(sequence, run.arena, StateSlot(carry.before, kKeyState), stash[k_out_],
                   (*carry.after)[kKeyState]);
    tail_v.emplace(sequence, run.arena, StateSlot(carry.before, kValueState), stash[v_out_],
                   (*carry.after)[kValueState]);
  }
  if (split) q_.Forward(run, x, stash[q_out_]);
  Rotate(run, stash[q_out_], heads_, /*inverse=*/false);
  if (halo_k) halo_k->Wait();
  if (halo_v) halo_v->Wait();

  const Shape heads{run.batch(), run.tokens(), heads_, head_width_};
  AttentionForwardArgs forward{
      .q = stash[q_out_].View(heads),
      .k = stash[k_out_],
      .v = stash[v_out_],
      .past_k = Past(run, StateSlot(carry.before, kKeyState), stash[halo_k_]),
      .past_v = Past(run, StateSlot(carry.before, kValueState), stash[halo_v_]),
      .positions = run.positions,
      .window = window_,
      .o = stash[o_].View(heads),
      .lse = stash[lse_]};
  forward.workspace = run.Workspace(AttentionForwardWorkspace(forward));
  AttentionForward(forward);
  if (tail_k) tail_k->Wait();
  if (tail_v) tail_v->Wait();
  if (run.pass == Pass::kRecompute) return;
  out_.Forward(run, stash[o_], out);
}

void AttentionMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                              Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const Shape heads{run.batch(), run.tokens(), heads_, head_width_};
  const Tensor dout = run.Scratch(q_.local_out()), dq = run.Scratch(q_.local_out());
  const Tensor dk = run.Scratch(head_width_), dv = run.Scratch(head_width_);
  const Tensor past_k = Past(run, StateSlot(carry.before, kKeyState), stash[halo_k_]);
  const Tensor past_v = Past(run, StateSlot(carry.before, kValueState), stash[halo_v_]);
  Tensor dpast_k, dpast_v;
  if (past_k.defined()) {
    dpast_k = run.arena.Allocate(x.dtype, past_k.shape);
    dpast_v = run.arena.Allocate(x.dtype, past_v.shape);
  }

  out_.BackwardInput(run, dy, dout, /*accumulate=*/false);
  AttentionBackwardArgs backward{.q = stash[q_out_].View(heads),
                                 .k = stash[k_out_],
                                 .v = stash[v_out_],
                                 .past_k = past_k,
                                 .past_v = past_v,
                                 .positions = run.positions,
                                 .window = window_,
                                 .o = stash[o_].View(heads),
                                 .lse = stash[lse_],
                                 .dout = dout.View(heads),
                                 .dq = dq.View(heads),
                                 .dk = dk,
                                 .dv = dv,
                                 .dpast_k = dpast_k,
                                 .dpast_v = dpast_v};
  backward.workspace = run.Workspace(AttentionBackwardWorkspace(backward));
  AttentionBackward(backward);
  std::optional<HaloGradExchange> halo_grad_k, halo_grad_v;
  if (split) {
    const Tensor dhalo_k = HaloOf(run, dpast_k, stash[halo_k_]);
    const Tensor dhalo_v = HaloOf(run, dpast_v, stash[halo_v_]);
    halo_grad_k.emplace(sequence, run.arena, dhalo_k, run.tokens(), Reach(), dk);
    halo_grad_v.emplace(sequence, run.arena, dhalo_v, run.tokens(), Reach(), dv);
  }
  Event state_k = StateGrad(run, dpast_k, stash[halo_k_], carry_grad, kKeyState, dk);
  Event state_v = StateGrad(run, dpast_v, stash[halo_v_], carry_grad, kValueState, dv);
  out_.BackwardWeight(run, stash[o_], dy);
  Rotate(run, dq, heads_, /*inverse=*/true);
  q_.BackwardInput(run, dq, dx, /*accumulate=*/false);
  if (halo_grad_k) halo_grad_k->Wait();
  if (halo_grad_v) halo_grad_v->Wait();
  Rotate(run, dk, 1, /*inverse=*/true);

  k_.BackwardInput(run, dk, dx, /*accumulate=*/true);
  v_.BackwardInput(run, dv, dx, /*accumulate=*/true);
  Event reduced = run.mesh.tensor().AllReduce(dx, ReduceOp::kSum);
  q_.BackwardWeight(run, x, dq);
  k_.BackwardWeight(run, x, dk);
  v_.BackwardWeight(run, x, dv);
  state_k.Wait();
  state_v.Wait();
  reduced.Wait();
}

namespace {

void Validate(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
  const auto& own = model.attention();
  errors.RequireDivisible("model.attention.heads", own.heads(), "parallel.tensor", tensor);
  errors.RequirePositive("model.attention.head_width", own.head_width());
  if (own.head_width() % 4 != 0) {
    errors.Add("model.attention.head_width = ", own.head_width(),
               " does not divide by 4, as rotary positions need");
  }
  if (own.rotary_base() <= 0) errors.Add("model.attention.rotary_base must be positive");
}

void ValidateOnGpu(const config::ModelConfig& model, DType /*activations*/, ConfigErrors& errors) {
  const int64_t width = model.attention().head_width();
  if (width <= kMaxAttentionCudaWidth) return;
  errors.Add("model.attention.head_width = ", width, "; GPUs take at most ",
             kMaxAttentionCudaWidth);
}

}  // namespace

MixerEntry GlobalAttentionMixerEntry() {
  return {"attention", Validate,
          [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
            return std::make_unique<AttentionMixer>(model, 0);
          },
          /*min_chunk=*/1, ValidateOnGpu};
}

MixerEntry LocalAttentionMixerEntry() {
  return {"local_attention",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            Validate(model, tensor, errors);
            errors.RequirePositive("model.attention.window", model.attention().window());
          },
          [](const config::ModelConfig& model, int64_t) -> std::unique_ptr<Mixer> {
            return std::make_unique<AttentionMixer>(model, model.attention().window());
          },
          /*min_chunk=*/1, ValidateOnGpu};
}

}  // namespace eyrie
