// What the gates make of each token, in the CPU body of the mLSTM. With
//
//   decay_t = exp(f_t + m_{t-1} - m_t), 0 at a document start      input_t = exp(i_t - m_t)
//
// the cell is a linear recurrence, C_t = decay_t C_{t-1} + input_t k_t v_t^T, whose factors lie in
// [0, 1]: the weight of any token at a later one is a product of them, whatever the gates, and
// documents part without a further case.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/vector_math.h"
#include "kernels/mlstm/mlstm.h"
#include "kernels/partition.h"
#include "kernels/row_math.h"

namespace eyrie::mlstm {

inline size_t Size(int64_t count) { return static_cast<size_t>(count); }

// The heads of all sequences are counted as one, B H of them.
struct Sizes {
  Sizes(const Tensor& q, const Tensor& v)
      : tokens(q.dim(1)),
        heads(q.dim(2)),
        all_heads(q.dim(0) * heads),
        keys(q.dim(3)),
        values(v.dim(3)),
        scale(1.0 / std::sqrt(static_cast<double>(keys))) {}
  // Of [B, T, H, width]: the first row of a head. Its rows are `heads` apart.
  int64_t Row(int64_t head, int64_t token) const {
    return (head / heads * tokens + token) * heads + head % heads;
  }
  // How much there is to do, for ForPieces.
  int64_t elements() const { return all_heads * std::max(tokens * (keys + values), keys * values); }

  int64_t tokens, heads, all_heads, keys, values;
  double scale;  // of q
};

// Calls body(head) for each.
template <class Body>
void ForHeads(const Sizes& sizes, const Body& body) {
  ForPieces(sizes.all_heads, sizes.elements(), body);
}

inline bool Starts(const Sizes& sizes, const Tensor& positions, int64_t head, int64_t token) {
  return positions.data<int32_t>()[head / sizes.heads * sizes.tokens + token] == 0;
}

// The stabiliser before the first token.
template <class Real>
double EnteringMaximum(const Tensor& before_m, bool stabilised, int64_t head) {
  if (!stabilised) return 0.0;
  return before_m.defined() ? static_cast<double>(before_m.data<Real>()[head]) : kMlstmEmpty;
}

// m_t of all tokens, [B, T, H].
template <class Real>
void ScanMaximum(const Sizes& sizes, const Tensor& log_i, const Tensor& log_f,
                 const Tensor& positions, const Tensor& before_m, bool stabilised, Real* maximum) {
  ForHeads(sizes, [&](int64_t head) {
    auto m = static_cast<Real>(EnteringMaximum<Real>(before_m, stabilised, head));
    for (int64_t t = 0; t < sizes.tokens; ++t) {
      const int64_t row = sizes.Row(head, t);
      if (stabilised) {
        const Real input = log_i.data<Real>()[row];
        const bool starts = Starts(sizes, positions, head, t);
        m = starts ? input : std::max(log_f.data<Real>()[row] + m, input);
      }
      maximum[row] = m;
    }
  });
}

// Of all tokens, [B H, T].
template <class Real>
struct Factors {
  // log_i may be absent; then `input` is empty.
  Factors(const Sizes& sizes, const Tensor& log_i, const Tensor& log_f, const Tensor& positions,
          const Tensor& before_m, bool stabilised, const Real* maximum)
      : decay(Size(sizes.all_heads * sizes.tokens)), input(log_i.defined() ? decay.size() : 0) {
    ForHeads(sizes, [&](int64_t head) {
      // In float64: what float32 rounded off m_t is part of the factors.
      double before = EnteringMaximum<Real>(before_m, stabilised, head);
      for (int64_t t = 0; t < sizes.tokens; ++t) {
        const int64_t row = sizes.Row(head, t);
        const size_t i = Size(head * sizes.tokens + t);
        const auto m = static_cast<double>(maximum[row]);
        const auto f = static_cast<double>(log_f.data<Real>()[row]);
        const bool starts = Starts(sizes, positions, head, t);
        decay[i] = starts ? Real(0) : Exp(static_cast<Real>(f + before - m));
        if (!input.empty()) {
          input[i] = Exp(static_cast<Real>(static_cast<double>(log_i.data<Real>()[row]) - m));
        }
        before = m;
      }
    });
  }
  std::vector<Real> decay, input;
};

// The logarithm of what all tokens together leave of the true memory before them.
template <class Real>
double LogDecay(const Sizes& sizes, const Tensor& log_f, const Tensor& positions, int64_t head) {
  double sum = 0.0;
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    if (Starts(sizes, positions, head, t)) return kMlstmEmpty;
    sum += static_cast<double>(log_f.data<Real>()[sizes.Row(head, t)]);
  }
  return sum;
}

// b_t
template <class Real>
Real Denominator(Real normaliser, Real maximum, const MlstmOptions& options) {
  if (!options.normalised) return Real(1);
  return std::max(std::abs(normaliser), Exp(-maximum)) + static_cast<Real>(options.epsilon);
}

// What backward needs of the denominators, [B H, T]: 1 / b_t, and the gradient of n_t . q_t.
template <class Real>
struct DenominatorGradients {
  // Of arguments of either backward function.
  template <class Args>
  DenominatorGradients(const Sizes& sizes, const Args& args)
      : inverse(Size(sizes.all_heads * sizes.tokens)), dnormaliser(inverse.size()) {
    const MlstmOptions& options = args.options;
    const Real *normaliser = args.normaliser.template data<Real>(),
               *maximum = args.maximum.template data<Real>(), *h = args.h.template data<Real>(),
               *dh = args.dh.template data<Real>(), *h_dh = args.h_dh.template data<Real>();
    ForHeads(sizes, [&](int64_t head) {
      for (int64_t t = 0; t < sizes.tokens; ++t) {
        const int64_t row = sizes.Row(head, t), first = row * sizes.values;
        const size_t i = Size(head * sizes.tokens + t);
        const Real nu = normaliser[row], m = maximum[row];
        inverse[i] = Real(1) / Denominator(nu, m, options);
        dnormaliser[i] = Real(0);
        if (!options.normalised || !options.normaliser_gradient) continue;
        if (std::abs(nu) <= Exp(-m)) continue;
        const Real product =
            h_dh != nullptr ? h_dh[row] : DotOf(dh + first, h + first, sizes.values);
        dnormaliser[i] = (nu > Real(0) ? -product : product) * inverse[i];
      }
    });
  }
  std::vector<Real> inverse, dnormaliser;
};

}  // namespace eyrie::mlstm
