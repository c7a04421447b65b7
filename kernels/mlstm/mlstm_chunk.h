// One chunk of tokens of one head in the CPU body of the mLSTM, of n tokens from `begin` on. Its
// tokens see each other through masked products and what came before through the state, all of them
// products of matrices that lie where the tensors lie. Beck et al., "Tiled Flash Linear Attention",
// arXiv:2503.14376, with the factors of mlstm_factors.h in place of sums of logarithms.
#pragma once

#include "core/blas.h"
#include "kernels/mlstm/mlstm_factors.h"

namespace eyrie::mlstm {

// The memory, or its gradient: c [dk, dv], then n [dk].
template <class Real>
struct StateView {
  Real *c, *n;
};
template <class Real>
StateView<const Real> Const(StateView<Real> view) {
  return {view.c, view.n};
}
// That of one head in tensors of all.
template <class Real>
StateView<Real> ViewOf(const Sizes& sizes, const Tensor& c, const Tensor& n, int64_t head) {
  return {c.data<Real>() + head * sizes.keys * sizes.values, n.data<Real>() + head * sizes.keys};
}

template <class Real>
class Chunk {
 public:
  Chunk(const Sizes& sizes, int64_t head, int64_t begin, int64_t n, const Factors<Real>& factors)
      : sizes_(sizes),
        n_(n),
        first_row_(sizes.Row(head, begin)),
        first_token_(head * sizes.tokens + begin),
        key_stride_(sizes.heads * sizes.keys),
        value_stride_(sizes.heads * sizes.values),
        scale_(static_cast<Real>(sizes.scale)),
        decay_(factors.decay.data() + first_token_),
        input_(factors.input.empty() ? nullptr : factors.input.data() + first_token_) {}

  // after = what the chunk makes of `before`.
  void Advance(const Tensor& k, const Tensor& v, StateView<const Real> before,
               StateView<Real> after) const {
    std::vector<Real> weighted(Size(n_ * sizes_.keys));
    Real weight = 1;  // from the token to the end of the chunk
    for (int64_t s = n_ - 1; s >= 0; --s) {
      ScaleRow(weight * input_[s], Keys(k) + s * key_stride_, weighted.data() + s * sizes_.keys,
               sizes_.keys);
      weight *= decay_[s];
    }
    Carry(weight, before, after);
    for (int64_t s = 0; s < n_; ++s) {
      AddScaledRow(Real(1), weighted.data() + s * sizes_.keys, after.n, sizes_.keys);
    }
    Gemm(Trans::kYes, Trans::kNo, sizes_.keys, sizes_.values, n_, Real(1), weighted.data(),
         sizes_.keys, Values(v), value_stride_, Real(1), after.c, sizes_.values);
  }

  // before = the gradient of the state before the chunk, given that of the one after it.
  void Retreat(const Tensor& q, const Tensor& dh, const DenominatorGradients<Real>& denominators,
               StateView<const Real> after, StateView<Real> before) const {
    std::vector<Real> weighted(Size(n_ * sizes_.keys)), weights(Size(n_));
    StateWeights(weights.data());
    Carry(weights.back(), after, before);
    for (int64_t r = 0; r < n_; ++r) {
      const Real weight = weights[Size(r)] * scale_;
      const Real* row = Keys(q) + r * key_stride_;
      ScaleRow(weight * Inverse(denominators)[r], row, weighted.data() + r * sizes_.keys,
               sizes_.keys);
      AddScaledRow(weight * DNormaliser(denominators)[r], row, before.n, sizes_.keys);
    }
    Gemm(Trans::kYes, Trans::kNo, sizes_.keys, sizes_.values, n_, Real(1), weighted.data(),
         sizes_.keys, Values(dh), value_stride_, Real(1), before.c, sizes_.values);
  }

  void Output(const MlstmForwardArgs& args, StateView<const Real> state) const {
    std::vector<Real> scores(Size(n_ * n_)), weights(scores.size()), state_weights(Size(n_));
    Weights(weights.data());
    StateWeights(state_weights.data());
    Real* h = Values(args.h);
    Gemm(Trans::kNo, Trans::kYes, n_, n_, sizes_.keys, scale_, Keys(args.q), key_stride_,
         Keys(args.k), key_stride_, Real(0), scores.data(), n_);
    Gemm(Trans::kNo, Trans::kNo, n_, sizes_.values, sizes_.keys, scale_, Keys(args.q), key_stride_,
         state.c, sizes_.values, Real(0), h, value_stride_);
    for (int64_t r = 0; r < n_; ++r) {
      Real* row = scores.data() + r * n_;
      MultiplyRow(weights.data() + r * n_, row, n_);
      const int64_t token = first_row_ + r * sizes_.heads;
      const Real from_state = scale_ * state_weights[Size(r)] *
                              DotOf(Keys(args.q) + r * key_stride_, state.n, sizes_.keys);
      const Real normaliser = from_state + SumOf(row, n_);
      args.normaliser.data<Real>()[token] = normaliser;
      const Real inverse =
          Real(1) / Denominator(normaliser, args.maximum.data<Real>()[token], args.options);
      ScaleRow(inverse, row, row, n_);
      Real* out = h + r * value_stride_;
      ScaleRow(inverse * state_weights[Size(r)], out, out, sizes_.values);
    }
    Gemm(Trans::kNo, Trans::kNo, n_, sizes_.values, n_, Real(1), scores.data(), n_, Values(args.v),
         value_stride_, Real(1), h, value_stride_);
  }

  // All gradients but those of states, from the state before the chunk, the one after it and the
  // gradient of the latter.
  void Gradients(const MlstmBackwardArgs& args, const DenominatorGradients<Real>& denominators,
                 StateView<const Real> before, StateView<const Real> after,
                 StateView<const Real> dafter) const {
    const int64_t keys = sizes_.keys, values = sizes_.values;
    const Real *q = Keys(args.q), *k = Keys(args.k), *v = Values(args.v), *dh = Values(args.dh);
    Real *dq = Keys(args.dq), *dk = Keys(args.dk), *dv = Values(args.dv);
    const Real *inverse = Inverse(denominators), *dnormaliser = DNormaliser(denominators);
    std::vector<Real> weights(Size(n_ * n_)), state_weights(Size(n_));
    Weights(weights.data());
    StateWeights(state_weights.data());
    const Real* leaving = weights.data() + (n_ - 1) * n_;  // the weights in the state after

    // What h_r is made of v_s by, over b_r; and the gradient with respect to q_r . k_s.
    std::vector<Real> scores(weights.size()), products(weights.size());
    Gemm(Trans::kNo, Trans::kYes, n_, n_, keys, scale_, q, key_stride_, k, key_stride_, Real(0),
         scores.data(), n_);
    Gemm(Trans::kNo, Trans::kYes, n_, n_, values, Real(1), dh, value_stride_, v, value_stride_,
         Real(0), products.data(), n_);
    for (int64_t r = 0; r < n_; ++r) {
      const Real *weight = weights.data() + r * n_, factor = inverse[r], addend = dnormaliser[r];
      Real *score = scores.data() + r * n_, *product = products.data() + r * n_;
#pragma omp simd
      for (int64_t s = 0; s < n_; ++s) {
        score[s] *= factor * weight[s];
        product[s] = scale_ * weight[s] * (factor * product[s] + addend);
      }
    }

    Gemm(Trans::kNo, Trans::kYes, n_, keys, values, scale_, dh, value_stride_, before.c, values,
         Real(0), dq, key_stride_);
    Gemm(Trans::kNo, Trans::kYes, n_, keys, values, Real(1), v, value_stride_, dafter.c, values,
         Real(0), dk, key_stride_);
    Gemm(Trans::kNo, Trans::kNo, n_, values, keys, Real(1), k, key_stride_, dafter.c, values,
         Real(0), dv, value_stride_);
    for (int64_t r = 0; r < n_; ++r) {
      const Real weight = state_weights[Size(r)];
      WeighRow(weight * inverse[r], weight * scale_ * dnormaliser[r], before.n,
               dq + r * key_stride_, keys);
      WeighRow(leaving[r], leaving[r], dafter.n, dk + r * key_stride_, keys);
      ScaleRow(leaving[r], dv + r * value_stride_, dv + r * value_stride_, values);
    }
    Gemm(Trans::kNo, Trans::kNo, n_, keys, n_, Real(1), products.data(), n_, k, key_stride_,
         Real(1), dq, key_stride_);
    Gemm(Trans::kYes, Trans::kNo, n_, keys, n_, Real(1), products.data(), n_, q, key_stride_,
         Real(1), dk, key_stride_);
    Gemm(Trans::kYes, Trans::kNo, n_, values, n_, Real(1), scores.data(), n_, dh, value_stride_,
         Real(1), dv, value_stride_);

    // Everything that a token's forget gate lets pass has left through a later q or the state, and
    // not come in through a later k.
    double passed = Dot(after.c, dafter.c, keys * values) + Dot(after.n, dafter.n, keys);
    for (int64_t r = n_ - 1; r >= 0; --r) {
      const int64_t token = first_row_ + r * sizes_.heads;
      const Real into = DotOf(k + r * key_stride_, dk + r * key_stride_, keys);
      const Real out = DotOf(q + r * key_stride_, dq + r * key_stride_, keys);
      passed += static_cast<double>(out) - static_cast<double>(into);
      if (args.positions.data<int32_t>()[token / sizes_.heads] == 0) passed = 0.0;
      args.dlog_i.data<Real>()[token] = into;
      args.dlog_f.data<Real>()[token] = static_cast<Real>(passed);
    }
  }

 private:
  Real* Keys(const Tensor& x) const { return x.data<Real>() + first_row_ * sizes_.keys; }
  Real* Values(const Tensor& x) const { return x.data<Real>() + first_row_ * sizes_.values; }
  const Real* Inverse(const DenominatorGradients<Real>& denominators) const {
    return denominators.inverse.data() + first_token_;
  }
  const Real* DNormaliser(const DenominatorGradients<Real>& denominators) const {
    return denominators.dnormaliser.data() + first_token_;
  }

  // weights[r * n + s]: of k_s v_s^T in C_r.
  void Weights(Real* weights) const {
    for (int64_t r = 0; r < n_; ++r) {
      Real* row = weights + r * n_;
      if (r > 0) ScaleRow(decay_[r], row - n_, row, r);
      row[r] = input_[r];
      std::fill(row + r + 1, row + n_, Real(0));
    }
  }
  // weights[r]: of the state before the chunk in C_r.
  void StateWeights(Real* weights) const {
    Real weight = 1;
    for (int64_t r = 0; r < n_; ++r) weights[r] = weight *= decay_[r];
  }

  void Carry(Real weight, StateView<const Real> from, StateView<Real> to) const {
    ScaleRow(weight, from.c, to.c, sizes_.keys * sizes_.values);
    ScaleRow(weight, from.n, to.n, sizes_.keys);
  }
  // y *= x
  static void MultiplyRow(const Real* x, Real* y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] *= x[i];
  }
  // y = factor y + weight x
  static void WeighRow(Real factor, Real weight, const Real* x, Real* y, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = factor * y[i] + weight * x[i];
  }
  static Real SumOf(const Real* x, int64_t n) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    return sum;
  }
  static double Dot(const Real* x, const Real* y, int64_t n) {
    return SumByPieces(
        n, [&](int64_t begin, int64_t count) { return DotOf(x + begin, y + begin, count); });
  }

  const Sizes& sizes_;
  int64_t n_, first_row_, first_token_;
  int64_t key_stride_, value_stride_;  // between a head's rows
  Real scale_;
  const Real *decay_, *input_;
};

}  // namespace eyrie::mlstm
