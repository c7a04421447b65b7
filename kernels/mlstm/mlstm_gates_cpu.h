// CPU body of the mLSTM's gates.
#pragma once

#include <vector>

#include "core/vector_math.h"
#include "kernels/mlstm/mlstm_gates.h"
#include "kernels/partition.h"

namespace eyrie {

// One gate of all tokens: x [..., H], bias [H].
template <class Real>
void MlstmGateForwardCpu(const Tensor& x, const Tensor& bias, MlstmGate gate, double soft_cap,
                         const Tensor& log) {
  const int64_t heads = bias.size();
  const auto cap = static_cast<Real>(soft_cap);
  const Real *from = x.data<Real>(), *added = bias.data<Real>();
  Real* to = log.data<Real>();
  RowTiles(x.size() / heads, heads).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin * heads; i < end * heads; ++i) {
      Real y = from[i] + added[i % heads];
      if (cap > Real(0)) y = cap * Tanh(y / cap);
      to[i] = gate == MlstmGate::kSigmoid ? -Softplus(-y) : y;
    }
  });
}

template <class Real>
void MlstmGateBackwardCpu(const Tensor& x, const Tensor& bias, MlstmGate gate, double soft_cap,
                          const Tensor& dlog, const Tensor& dx, const Tensor& dbias) {
  const int64_t heads = bias.size(), rows = x.size() / heads;
  const auto cap = static_cast<Real>(soft_cap);
  const Real *from = x.data<Real>(), *added = bias.data<Real>(), *gradient = dlog.data<Real>();
  Real* to = dx.data<Real>();
  RowTiles(rows, heads).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin * heads; i < end * heads; ++i) {
      Real y = from[i] + added[i % heads], slope = 1;
      if (cap > Real(0)) {
        const Real share = Tanh(y / cap);
        y = cap * share;
        slope = Real(1) - share * share;
      }
      to[i] = gradient[i] * slope * (gate == MlstmGate::kSigmoid ? Sigmoid(-y) : Real(1));
    }
  });
  // In float64: there are few heads and many tokens, whose parts may cancel.
  std::vector<double> sums(static_cast<size_t>(heads));
  for (int64_t i = 0; i < rows * heads; ++i) {
    sums[static_cast<size_t>(i % heads)] += static_cast<double>(to[i]);
  }
  for (int64_t h = 0; h < heads; ++h) {
    dbias.data<Real>()[h] += static_cast<Real>(sums[static_cast<size_t>(h)]);
  }
}

template <class Real>
void MlstmGatesForwardCpu(const MlstmGatesForwardArgs& args) {
  MlstmGateForwardCpu<Real>(args.i, args.bias_i, args.input, args.soft_cap, args.log_i);
  MlstmGateForwardCpu<Real>(args.f, args.bias_f, args.forget, args.soft_cap, args.log_f);
}

template <class Real>
void MlstmGatesBackwardCpu(const MlstmGatesBackwardArgs& args) {
  MlstmGateBackwardCpu<Real>(args.i, args.bias_i, args.input, args.soft_cap, args.dlog_i, args.di,
                             args.dbias_i);
  MlstmGateBackwardCpu<Real>(args.f, args.bias_f, args.forget, args.soft_cap, args.dlog_f, args.df,
                             args.dbias_f);
}

}  // namespace eyrie
