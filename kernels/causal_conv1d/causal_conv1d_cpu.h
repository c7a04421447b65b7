// CPU body of the convolution: each task carries one block of channels of one sequence through
// time, one tap after the other. With the usual four taps, the forward pass takes tokens that are
// not near a document's start in groups, and reads the weights and each row once a group.
// B sequences, T tokens, C channels, K taps. Row j < 0 of an input is row K-1+j of its state.
#pragma once

#include <algorithm>
#include <vector>

#include "core/vector_math.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/partition.h"

namespace eyrie {
namespace causal_conv1d {

// A block of channels of the sequence [state; rows], rows addressed by j in [1-K, T). A state that
// is absent is replaced by one row that stands for all of its rows.
template <class Real>
class Rows {
 public:
  Rows(Real* rows, Real* state, Real* absent, int64_t b, int64_t time, int64_t channels,
       int64_t history, int64_t first)
      : rows_(rows + b * time * channels + first),
        state_(state != nullptr ? state + (b + 1) * history * channels + first : absent),
        stride_(channels),
        state_stride_(state != nullptr ? channels : 0) {}
  Real* operator[](int64_t j) const {
    return j >= 0 ? rows_ + j * stride_ : state_ + j * state_stride_;
  }

 private:
  Real* rows_;
  Real* state_;
  int64_t stride_, state_stride_;
};

constexpr int64_t kGroup = 4;                       // tokens
constexpr int64_t kGroupTaps = 4;                   // K
constexpr int64_t kSpan = kGroup + kGroupTaps - 1;  // input rows that a group reads

// Whether tokens [t, t + kGroup) exist and see all their taps.
inline bool GroupIsLive(const int32_t* positions, int64_t t, int64_t time, int64_t taps) {
  if (taps != kGroupTaps || t + kGroup > time) return false;
  const int32_t* begin = positions + t;
  return *std::min_element(begin, begin + kGroup) >= kGroupTaps - 1;
}

template <class Real>
void ForwardGroup(const Rows<const Real>& x_rows, const Real* weight, const Real* bias, Real* y,
                  int64_t t, int64_t channels, int64_t count) {
  const Real* x[kSpan];
  for (int64_t k = 0; k < kSpan; ++k) x[k] = x_rows[t - kGroupTaps + 1 + k];
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t g = 0; g < kGroup; ++g) {
      Real sum = bias[c];
      // From the current token back, as outside groups: where a chunk is cut changes no bit.
      for (int64_t k = kGroupTaps - 1; k >= 0; --k) sum += weight[k * channels + c] * x[g + k][c];
      y[g * channels + c] = sum;
    }
  }
}

// y := the sum of token t, which sees `live` tokens before it.
template <class Real>
void ForwardToken(const Rows<const Real>& x_rows, const Real* weight, const Real* bias, Real* y,
                  int64_t t, int64_t live, int64_t history, int64_t channels, int64_t count) {
  std::copy_n(bias, count, y);
  for (int64_t s = 0; s <= live; ++s) {
    const Real *w = weight + (history - s) * channels, *x = x_rows[t - s];
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) y[c] += w[c] * x[c];
  }
}

}  // namespace causal_conv1d

template <class Real>
void CausalConv1dForwardCpu(const CausalConv1dForwardArgs& args) {
  const int64_t batch = args.x.dim(0), time = args.x.dim(1), channels = args.x.dim(2);
  const int64_t history = args.weight.dim(0) - 1;
  const Real *x = args.x.data<Real>(), *x0 = args.x0.data<Real>();
  const Real *weight = args.weight.data<Real>(), *bias = args.bias.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *y = args.y.data<Real>(), *x_last = args.x_last.data<Real>();

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const Real zeros[kChannelBlock] = {};
    const causal_conv1d::Rows<const Real> x_rows(x, x0, zeros, b, time, channels, history, first);
    int64_t tokens = 0;  // at once
    for (int64_t t = 0; t < time; t += tokens) {
      Real* y_t = y + (b * time + t) * channels + first;
      if (causal_conv1d::GroupIsLive(positions + b * time, t, time, history + 1)) {
        tokens = causal_conv1d::kGroup;
        causal_conv1d::ForwardGroup(x_rows, weight + first, bias + first, y_t, t, channels, count);
      } else {
        tokens = 1;
        const int64_t live = std::min<int64_t>(history, positions[b * time + t]);
        causal_conv1d::ForwardToken(x_rows, weight + first, bias + first, y_t, t, live, history,
                                    channels, count);
      }
      if (!args.silu) continue;
      for (const Real* end = y_t + tokens * channels; y_t < end; y_t += channels) {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) y_t[c] *= Sigmoid(y_t[c]);
      }
    }
    if (x_last == nullptr) return;
    for (int64_t k = 0; k < history; ++k) {
      std::copy_n(x_rows[time - history + k], count, x_last + (b * history + k) * channels + first);
    }
  });
}

template <class Real>
void CausalConv1dBackwardCpu(const CausalConv1dBackwardArgs& args) {
  const int64_t batch = args.x.dim(0), time = args.x.dim(1), channels = args.x.dim(2);
  const int64_t taps = args.weight.dim(0), history = taps - 1;
  const Real *x = args.x.data<Real>(), *x0 = args.x0.data<Real>();
  const Real *weight = args.weight.data<Real>(), *bias = args.bias.data<Real>();
  const Real* dy = args.dy.data<Real>();
  const Real* dx_last = args.dx_last.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *dx = args.dx.data<Real>(), *dx0 = args.dx0.data<Real>();
  const bool summed = args.dx_sum.defined();

  // Each sequence's share of [dweight; dbias; dx_sum], [B, K+2, C].
  const int64_t share = (taps + 2) * channels;
  std::vector<Real> partial(static_cast<size_t>(batch * share));

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const Real zeros[kChannelBlock] = {};
    Real unwanted[kChannelBlock];  // takes the gradient of an absent state
    Real of_sum[kChannelBlock];    // the gradient of a token's sum, with SiLU
    const causal_conv1d::Rows<const Real> x_rows(x, x0, zeros, b, time, channels, history, first);
    const causal_conv1d::Rows<Real> dx_rows(dx, dx0, unwanted, b, time, channels, history, first);
    Real* dw = partial.data() + b * share + first;
    Real *db = dw + taps * channels, *dx_sum = db + channels;

    // What row j receives from x_last, which holds rows [T-K+1, T).
    const auto start_row = [&](int64_t j) {
      const int64_t k = j - (time - history);
      const bool handed_on = dx_last != nullptr && k >= 0;
      std::copy_n(handed_on ? dx_last + (b * history + k) * channels + first : zeros, count,
                  dx_rows[j]);
    };
    // Of a row that no token adds to any more.
    const auto sum_row = [&](int64_t j) {
      const Real* dx_j = dx_rows[j];
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) dx_sum[c] += dx_j[c];
    };
    for (int64_t j = -history; j < 0; ++j) start_row(j);
    for (int64_t t = 0; t < time; ++t) {
      start_row(t);
      const Real* dy_t = dy + (b * time + t) * channels + first;
      const int64_t live = std::min<int64_t>(history, positions[b * time + t]);
      if (args.silu) {
        causal_conv1d::ForwardToken(x_rows, weight + first, bias + first, of_sum, t, live, history,
                                    channels, count);
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          const Real s = Sigmoid(of_sum[c]);
          of_sum[c] = dy_t[c] * s * (Real(1) + of_sum[c] * (Real(1) - s));
        }
        dy_t = of_sum;
      }
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) db[c] += dy_t[c];
      for (int64_t s = 0; s <= live; ++s) {
        const Real *w = weight + (history - s) * channels + first, *x_s = x_rows[t - s];
        Real *dw_s = dw + (history - s) * channels, *dx_s = dx_rows[t - s];
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          dx_s[c] += w[c] * dy_t[c];
          dw_s[c] += x_s[c] * dy_t[c];
        }
      }
      if (summed && t >= history) sum_row(t - history);
    }
    for (int64_t j = std::max<int64_t>(0, time - history); summed && j < time; ++j) sum_row(j);
  });

  // [dweight; dbias; dx_sum] are three tensors: add the sequences' shares in order to each.
  Real *dweight = args.dweight.data<Real>(), *dbias = args.dbias.data<Real>();
  Real* dx_sum = args.dx_sum.data<Real>();
  for (int64_t b = 0; b < batch; ++b) {
    const Real* dw = partial.data() + b * share;
    const Real *db = dw + taps * channels, *of_dx = db + channels;
#pragma omp simd
    for (int64_t i = 0; i < taps * channels; ++i) dweight[i] += dw[i];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) dbias[c] += db[c];
    if (!summed) continue;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) dx_sum[c] += of_dx[c];
  }
}

}  // namespace eyrie
