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

// after [B, W, dh] := the last W rows of [before [B, W, dh]; now [B, T, dh]]; `before` absent: 0.
void Remember(const Tensor& before, const Tensor& now, const Tensor& after) {
  const int64_t w = after.dim(1), t = now.dim(1), fresh = std::min(w, t);
  if (before.defined()) {
    CopyRows(before, fresh, after, 0, w - fresh);
  } else {
    FillZero(after);
  }
  CopyRows(now, t - fresh, after, w - fresh, fresh);
}

// The transpose of Remember: adds dafter's rows to dnow's and dbefore's.
void RememberBackward(const Tensor& dafter, const Tensor& dnow, const Tensor& dbefore) {
  const int64_t w = dafter.dim(1), t = dnow.dim(1), fresh = std::min(w, t);
  for (int64_t b = 0; b < dafter.dim(0); ++b) {
    const Tensor source = dafter.Rows(b, b + 1).View({w, dafter.dim(2)});
    const Tensor now = dnow.Rows(b, b + 1).View({t, dnow.dim(2)}).Rows(t - fresh, t);
    Add(now, source.Rows(w - fresh, w), now);
    if (fresh < w && dbefore.defined()) {
      const Tensor before = dbefore.Rows(b, b + 1).View(source.shape).Rows(fresh, w);
      Add(before, source.Rows(0, w - fresh), before);
    }
  }
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
  const auto halo_rows = [reach = Reach()](int64_t tokens, int64_t chunk) {
    return HaloRows(tokens, chunk, reach);
  };
  halo_k_ = declare.stash.AddKept("halo_k", head_width_, halo_rows);
  halo_v_ = declare.stash.AddKept("halo_v", head_width_, halo_rows);
  q_out_ = declare.stash.Add("q", q_.local_out());
  k_out_ = declare.stash.Add("k", head_width_);
  v_out_ = declare.stash.Add("v", head_width_);
  o_ = declare.stash.Add("o", q_.local_out());
  lse_ = declare.stash.Add("lse", heads_);
}

void AttentionMixer::DeclareState(StateTable& table) const {
  const int64_t rows = window_ == 0 ? table.capacity() : std::min(window_, table.capacity());
  table.Add("k", rows, head_width_);
  table.Add("v", rows, head_width_);
}

double AttentionMixer::ExtraFlops(int64_t before, int64_t tokens) const {
  // Token t sees min(t, reach) earlier keys and its own, each with a product of dh elements for
  // its score and another for its value.
  const auto keys = [this](int64_t end) {
    const int64_t growing = std::min(end, Reach());
    return static_cast<double>(growing) * static_cast<double>(growing - 1) / 2.0 +
           static_cast<double>(end - growing) * static_cast<double>(Reach()) +
           static_cast<double>(end);
  };
  return 4.0 * static_cast<double>(q_.local_out()) * (keys(before + tokens) - keys(before));
}

void AttentionMixer::Rotate(Run& run, const Tensor& heads, int64_t count, bool inverse) const {
  Rotary({.x = heads.View({run.batch(), run.tokens(), count, head_width_}),
          .positions = run.positions,
          .base = rotary_base_,
          .inverse = inverse});
}

void AttentionMixer::Forward(Run& run, const Tensor& x, const Tensor& y, Stash& stash,
                             const Carry& carry) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  EYRIE_CHECK(!split || (carry.before == nullptr && carry.after == nullptr));

  // Keys and values go first: those that later ranks see travel under the queries' projection.
  k_.Forward(run, x, stash[k_out_]);
  v_.Forward(run, x, stash[v_out_]);
  Rotate(run, stash[k_out_], 1, /*inverse=*/false);
  std::optional<HaloExchange> halo_k, halo_v;
  if (split && run.pass != Pass::kRecompute) {
    halo_k.emplace(sequence, run.arena, stash[k_out_], run.tokens(), Reach(), stash[halo_k_]);
    halo_v.emplace(sequence, run.arena, stash[v_out_], run.tokens(), Reach(), stash[halo_v_]);
  }
  q_.Forward(run, x, stash[q_out_]);
  Rotate(run, stash[q_out_], heads_, /*inverse=*/false);
  if (halo_k) halo_k->Wait();
  if (halo_v) halo_v->Wait();

  const Shape heads{run.batch(), run.tokens(), heads_, head_width_};
  AttentionForward(
      {.q = stash[q_out_].View(heads),
       .k = stash[k_out_],
       .v = stash[v_out_],
       .past_k = split ? IfAnyRows(stash[halo_k_]) : StateSlot(carry.before, kKeyState),
       .past_v = split ? IfAnyRows(stash[halo_v_]) : StateSlot(carry.before, kValueState),
       .positions = run.positions,
       .window = window_,
       .o = stash[o_].View(heads),
       .lse = stash[lse_]});
  if (carry.after != nullptr) {
    Remember(StateSlot(carry.before, kKeyState), stash[k_out_], (*carry.after)[kKeyState]);
    Remember(StateSlot(carry.before, kValueState), stash[v_out_], (*carry.after)[kValueState]);
  }
  if (run.pass == Pass::kRecompute) return;
  out_.Forward(run, stash[o_], y);
  out_.Reduce(run, y);
}

void AttentionMixer::Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx,
                              Stash& stash, const Carry& carry, const CarryGrad& carry_grad) {
  ArenaScope scope(run.arena);
  Communicator& sequence = run.mesh.sequence();
  const bool split = sequence.size() > 1;
  const Shape heads{run.batch(), run.tokens(), heads_, head_width_};
  const Tensor dout = run.Scratch(q_.local_out()), dq = run.Scratch(q_.local_out());
  const Tensor dk = run.Scratch(head_width_), dv = run.Scratch(head_width_);
  const Tensor halo_k = IfAnyRows(stash[halo_k_]), halo_v = IfAnyRows(stash[halo_v_]);
  Tensor dpast_k = StateSlot(carry_grad.before, kKeyState);
  Tensor dpast_v = StateSlot(carry_grad.before, kValueState);
  if (halo_k.defined()) {
    dpast_k = run.arena.Allocate(x.dtype, halo_k.shape);
    dpast_v = run.arena.Allocate(x.dtype, halo_v.shape);
  }

  out_.BackwardInput(run, dy, dout, /*accumulate=*/false);
  AttentionBackward({.q = stash[q_out_].View(heads),
                     .k = stash[k_out_],
                     .v = stash[v_out_],
                     .past_k = split ? halo_k : StateSlot(carry.before, kKeyState),
                     .past_v = split ? halo_v : StateSlot(carry.before, kValueState),
                     .positions = run.positions,
                     .window = window_,
                     .o = stash[o_].View(heads),
                     .lse = stash[lse_],
                     .dout = dout.View(heads),
                     .dq = dq.View(heads),
                     .dk = dk,
                     .dv = dv,
                     .dpast_k = dpast_k,
                     .dpast_v = dpast_v});
  if (carry_grad.after != nullptr) {
    RememberBackward((*carry_grad.after)[kKeyState], dk, dpast_k);
    RememberBackward((*carry_grad.after)[kValueState], dv, dpast_v);
  }
  std::optional<HaloGradExchange> halo_grad_k, halo_grad_v;
  if (split) {
    halo_grad_k.emplace(sequence, run.arena, dpast_k, run.tokens(), Reach(), dk);
    halo_grad_v.emplace(sequence, run.arena, dpast_v, run.tokens(), Reach(), dv);
  }
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

}  // namespace

MixerEntry GlobalAttentionMixerEntry() {
  return {"attention", Validate, [](const config::ModelConfig& model) -> std::unique_ptr<Mixer> {
            return std::make_unique<AttentionMixer>(model, 0);
          }};
}

MixerEntry LocalAttentionMixerEntry() {
  return {"local_attention",
          [](const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
            Validate(model, tensor, errors);
            errors.RequirePositive("model.attention.window", model.attention().window());
          },
          [](const config::ModelConfig& model) -> std::unique_ptr<Mixer> {
            return std::make_unique<AttentionMixer>(model, model.attention().window());
          }};
}

}  // namespace eyrie
