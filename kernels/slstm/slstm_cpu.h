// CPU body of the sLSTM: each task takes one head of all sequences through time, so that a step
// reads the head's recurrent matrix once. B sequences, T tokens, H heads of d units.
#pragma once

#include <algorithm>
#include <vector>

#include "core/blas.h"
#include "kernels/partition.h"
#include "kernels/slstm/slstm.h"

namespace eyrie {
namespace slstm {

// The rows of a head's units that hold its cell between two tokens of a sequence.
template <class Real>
struct Cell {
  Real *c, *n, *m;
};

// One token of one sequence. In: pre-activations of i, f, z, o [4, d] and the cell before it; out:
// the gates, exponential ones stabilised by m, in their place, and the cell after it, which may be
// the same memory. Each step is a loop of its own: see SigmoidExp.
template <class Real>
void Step(bool exponential_forget, Real* gates, const Cell<const Real>& before,
          const Cell<Real>& after, int64_t units) {
  Real *i = gates, *f = i + units, *z = f + units, *o = z + units;
  if (!exponential_forget) {
#pragma omp simd
    for (int64_t u = 0; u < units; ++u) f[u] = -Softplus(-f[u]);
  }
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) {
    const Real kept = f[u] + before.m[u];
    const Real larger = kept > i[u] ? kept : i[u];
    const Real m = before.n[u] == Real(0) ? i[u] : larger;
    // Above 0 only where nothing is kept.
    const Real log_f = kept - m > Real(0) ? Real(0) : kept - m;
    i[u] = Exp(i[u] - m);
    f[u] = Exp(log_f);
    after.m[u] = m;
  }
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) z[u] = Tanh(z[u]);
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) o[u] = SigmoidExp(o[u]);
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) {
    o[u] = SigmoidOfExp(o[u]);
    after.c[u] = f[u] * before.c[u] + i[u] * z[u];
    after.n[u] = f[u] * before.n[u] + i[u];
  }
}

// y = o c / n
template <class Real>
void Output(const Real* o, const Cell<Real>& cell, Real* y, int64_t units) {
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) y[u] = o[u] * cell.c[u] / cell.n[u];
}

// The derivative of log_f by its pre-activation.
template <class Real>
void ForgetSlope(bool exponential_forget, const Real* pre_activation, Real* slope, int64_t units) {
  if (exponential_forget) {
    std::fill_n(slope, units, Real(1));
    return;
  }
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) slope[u] = SigmoidExp(-pre_activation[u]);
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) slope[u] = SigmoidOfExp(slope[u]);
}

// One token of one sequence backward. In: the gates, the cell's c and n before and after the token,
// the gradients of y here and by way of the next token, and of c and n after it. Out: gradients of
// the pre-activations in the gates' place, and of c and n before the token.
template <class Real>
void GradStep(Real* gates, const Real* forget_slope, const Cell<const Real>& before,
              const Cell<const Real>& after, const Real* dy, const Real* dy_next, Real* dc,
              Real* dn, int64_t units) {
  Real *i = gates, *f = i + units, *z = f + units, *o = z + units;
#pragma omp simd
  for (int64_t u = 0; u < units; ++u) {
    const Real share = (dy[u] + dy_next[u]) * o[u] / after.n[u];
    const Real ratio = after.c[u] / after.n[u];
    const Real c = dc[u] + share, n = dn[u] - share * ratio;
    const Real forget = f[u], input = i[u];
    i[u] = input * (z[u] * c + n);
    f[u] = forget * (before.c[u] * c + before.n[u] * n) * forget_slope[u];
    z[u] = input * c * (Real(1) - z[u] * z[u]);
    o[u] = share * after.c[u] * (Real(1) - o[u]);
    dc[u] = forget * c;
    dn[u] = forget * n;
  }
}

// A head of all sequences.
template <class Real>
class Head {
 public:
  template <class Args>
  Head(const Args& args, int64_t head)
      : batch_(args.x.dim(0)),
        tokens_(args.x.dim(1)),
        units_(args.x.dim(4)),
        pitch_(args.x.dim(2) * units_),
        first_(head * units_),
        exponential_forget_(args.exponential_forget),
        x_(args.x.template data<Real>()),
        r_(args.r.template data<Real>() + 4 * first_ * units_),
        bias_(args.bias.template data<Real>() + 4 * first_),
        positions_(args.positions.template data<int32_t>()),
        before_{Load(args.before.y), Load(args.before.c), Load(args.before.n), Load(args.before.m)},
        zeros_(Size(units_)) {}

  void Forward(const SlstmForwardArgs& args);
  void Backward(const SlstmBackwardArgs& args);

 private:
  using Rows = std::vector<Real>;
  struct State {
    Rows y, c, n, m;  // [B, d]
  };

  static size_t Size(int64_t count) { return static_cast<size_t>(count); }
  // Where the head's row of a token begins in a [B, T, H, d] tensor.
  int64_t At(int64_t b, int64_t t) const { return (b * tokens_ + t) * pitch_ + first_; }
  bool Starts(int64_t b, int64_t t) const { return positions_[b * tokens_ + t] == 0; }

  // The head's part of a state [B, H, d]; zeros where that is absent.
  Rows Load(const Tensor& state) const {
    Rows rows(Size(batch_ * units_));
    for (int64_t b = 0; state.defined() && b < batch_; ++b) {
      std::copy_n(state.data<Real>() + b * pitch_ + first_, units_, rows.data() + b * units_);
    }
    return rows;
  }
  void Store(const Rows& rows, const Tensor& state) const {
    for (int64_t b = 0; state.defined() && b < batch_; ++b) {
      std::copy_n(rows.data() + b * units_, units_, state.data<Real>() + b * pitch_ + first_);
    }
  }
  // Zeros where a document starts at token t.
  void Reset(int64_t t, std::initializer_list<Rows*> state) const {
    for (int64_t b = 0; b < batch_; ++b) {
      if (!Starts(b, t)) continue;
      for (Rows* rows : state) std::fill_n(rows->data() + b * units_, units_, Real(0));
    }
  }
  // The row of y, c or n before a token, where `previous` is that after the token before.
  const Real* Before(int64_t b, int64_t t, const Real* previous, const Rows& first) const {
    if (Starts(b, t)) return zeros_.data();
    return t == 0 ? first.data() + b * units_ : previous;
  }
  // gates = x + bias
  void AddBias(int64_t b, int64_t t, Real* gates) const {
    const Real* x = x_ + 4 * At(b, t);
#pragma omp simd
    for (int64_t k = 0; k < 4 * units_; ++k) gates[k] = x[k] + bias_[k];
  }

  int64_t batch_, tokens_, units_;
  int64_t pitch_, first_;  // of all heads' units, the head's first
  bool exponential_forget_;
  const Real *x_, *r_, *bias_;  // r and bias of the head alone, [d, 4 d] and [4 d]
  const int32_t* positions_;
  State before_;
  Rows zeros_;
};

template <class Real>
void Head<Real>::Forward(const SlstmForwardArgs& args) {
  auto& [y, c, n, m] = before_;
  const int64_t wide = 4 * units_;
  Rows gates(Size(batch_ * wide));
  for (int64_t t = 0; t < tokens_; ++t) {
    Reset(t, {&y, &c, &n, &m});
    for (int64_t b = 0; b < batch_; ++b) AddBias(b, t, gates.data() + b * wide);
    Gemm(Trans::kNo, Trans::kNo, batch_, wide, units_, Real(1), y.data(), units_, r_, wide, Real(1),
         gates.data(), wide);
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t row = b * units_;
      Real* gates_b = gates.data() + b * wide;
      const Cell<Real> cell{c.data() + row, n.data() + row, m.data() + row};
      Step<Real>(exponential_forget_, gates_b, {cell.c, cell.n, cell.m}, cell, units_);
      Output(gates_b + 3 * units_, cell, y.data() + row, units_);
      std::copy_n(y.data() + row, units_, args.y.data<Real>() + At(b, t));
    }
  }
  Store(y, args.after.y);
  Store(c, args.after.c);
  Store(n, args.after.n);
  Store(m, args.after.m);
}

template <class Real>
void Head<Real>::Backward(const SlstmBackwardArgs& args) {
  const Real *y = args.y.data<Real>(), *dy = args.dy.data<Real>();
  const int64_t wide = 4 * units_, rows = batch_ * tokens_;
  // The head's rows of dx hold its pre-activations, then its gates, then gradients.
  Real* dx = args.dx.data<Real>();
  Rows entering(Size(rows * units_));  // y before each token, [B T, d]
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t t = 0; t < tokens_; ++t) {
      AddBias(b, t, dx + 4 * At(b, t));
      std::copy_n(Before(b, t, y + At(b, t) - pitch_, before_.y), units_,
                  entering.data() + (b * tokens_ + t) * units_);
    }
  }
  Gemm(Trans::kNo, Trans::kNo, rows, wide, units_, Real(1), entering.data(), units_, r_, wide,
       Real(1), dx + 4 * first_, 4 * pitch_);

  // After each token, [B T, d].
  Rows c(Size(rows * units_)), n(Size(rows * units_)), slope(Size(rows * units_));
  const auto cell_before = [&](int64_t b, int64_t t) {
    const int64_t previous = (b * tokens_ + t - 1) * units_;
    return Cell<const Real>{Before(b, t, c.data() + previous, before_.c),
                            Before(b, t, n.data() + previous, before_.n),
                            before_.m.data() + b * units_};
  };
  for (int64_t t = 0; t < tokens_; ++t) {
    Reset(t, {&before_.m});
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t row = (b * tokens_ + t) * units_;
      Real* gates = dx + 4 * At(b, t);
      ForgetSlope(exponential_forget_, gates + units_, slope.data() + row, units_);
      Step<Real>(exponential_forget_, gates, cell_before(b, t),
                 {c.data() + row, n.data() + row, before_.m.data() + b * units_}, units_);
    }
  }

  Rows dy_next = Load(args.dafter.y), dc = Load(args.dafter.c), dn = Load(args.dafter.n);
  for (int64_t t = tokens_ - 1; t >= 0; --t) {
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t row = (b * tokens_ + t) * units_, sequence = b * units_;
      GradStep<Real>(dx + 4 * At(b, t), slope.data() + row, cell_before(b, t),
                     {c.data() + row, n.data() + row, nullptr}, dy + At(b, t),
                     dy_next.data() + sequence, dc.data() + sequence, dn.data() + sequence, units_);
    }
    Gemm(Trans::kNo, Trans::kYes, batch_, units_, wide, Real(1), dx + 4 * At(0, t),
         4 * tokens_ * pitch_, r_, wide, Real(0), dy_next.data(), units_);
    Reset(t, {&dy_next, &dc, &dn});
  }
  Store(dy_next, args.dbefore.y);
  Store(dc, args.dbefore.c);
  Store(dn, args.dbefore.n);

  Gemm(Trans::kYes, Trans::kNo, units_, wide, rows, Real(1), entering.data(), units_,
       dx + 4 * first_, 4 * pitch_, Real(1), args.dr.data<Real>() + 4 * first_ * units_, wide);
}

}  // namespace slstm

template <class Real>
void SlstmForwardCpu(const SlstmForwardArgs& args) {
  ForPieces(args.x.dim(2), args.x.size() * args.x.dim(4),
            [&](int64_t head) { slstm::Head<Real>(args, head).Forward(args); });
}

template <class Real>
void SlstmBackwardCpu(const SlstmBackwardArgs& args) {
  ForPieces(args.x.dim(2), args.x.size() * args.x.dim(4),
            [&](int64_t head) { slstm::Head<Real>(args, head).Backward(args); });
  const int64_t tokens = args.x.dim(0) * args.x.dim(1);
  AddRowSum(args.dx.data<Real>(), tokens, args.dbias.size(), args.dbias.data<Real>());
}

}  // namespace eyrie
