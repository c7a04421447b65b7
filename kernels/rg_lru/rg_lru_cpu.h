// CPU body of the RG-LRU: each task carries one block of channels of one sequence through time.
// B sequences, T tokens, R channels.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/partition.h"
#include "kernels/rg_lru/rg_lru.h"

namespace eyrie {
namespace rg_lru {

// The gates of one element away from a document start. e = a - 1 = expm1(l) also yields
// 1 - a^2 = -e (2 + e) without cancellation, so one transcendental serves both a and m.
template <class Real>
struct Gates {
  Gates(Real zi, Real zr, Real rate) : i(Sigmoid(zi)), r(Sigmoid(zr)) {
    const Real e = Expm1(rate * r);
    a = Real(1) + e;
    m = std::sqrt(-e * (Real(2) + e));
  }
  Real i, r, a, m;
};

// What a block of channels starts from.
template <class Real>
struct Block {
  Block(const Real* lambda, const Real* h0, int64_t count) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) rate[c] = Real(-8) * Softplus(lambda[c]);
    if (h0 != nullptr) std::copy_n(h0, count, initial);
  }
  Real rate[kChannelBlock];          // l = rate * r
  Real initial[kChannelBlock] = {};  // h_{-1}
};

}  // namespace rg_lru

template <class Real>
void RgLruForwardCpu(const RgLruForwardArgs& args) {
  const int64_t batch = args.u.dim(0), time = args.u.dim(1), channels = args.u.dim(2);
  const Real *u = args.u.data<Real>(), *zi = args.zi.data<Real>(), *zr = args.zr.data<Real>();
  const Real *lambda = args.lambda.data<Real>(), *h0 = args.h0.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *h = args.h.data<Real>(), *h_last = args.h_last.data<Real>();

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const int64_t state = b * channels + first;
    const rg_lru::Block<Real> block(lambda + first, h0 ? h0 + state : nullptr, count);
    const Real* before = block.initial;
    for (int64_t t = 0; t < time; ++t) {
      const int64_t row = (b * time + t) * channels + first;
      const Real *u_t = u + row, *zi_t = zi + row, *zr_t = zr + row;
      Real* h_t = h + row;
      if (positions[b * time + t] == 0) {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) h_t[c] = Sigmoid(zi_t[c]) * u_t[c];
      } else {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          const rg_lru::Gates<Real> g(zi_t[c], zr_t[c], block.rate[c]);
          h_t[c] = g.a * before[c] + g.m * g.i * u_t[c];
        }
      }
      before = h_t;
    }
    if (h_last != nullptr) std::copy_n(before, count, h_last + state);
  });
}

template <class Real>
void RgLruBackwardCpu(const RgLruBackwardArgs& args) {
  const int64_t batch = args.u.dim(0), time = args.u.dim(1), channels = args.u.dim(2);
  const Real *u = args.u.data<Real>(), *zi = args.zi.data<Real>(), *zr = args.zr.data<Real>();
  const Real *lambda = args.lambda.data<Real>(), *h0 = args.h0.data<Real>();
  const Real *h = args.h.data<Real>(), *dh = args.dh.data<Real>();
  const Real* dh_last = args.dh_last.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *du = args.du.data<Real>(), *dzi = args.dzi.data<Real>(), *dzr = args.dzr.data<Real>();
  Real *dh0 = args.dh0.data<Real>(), *dlambda = args.dlambda.data<Real>();

  // Sum over time of r dl, [B, R].
  std::vector<Real> decay_sum(static_cast<size_t>(batch * channels));

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const int64_t state = b * channels + first;
    const rg_lru::Block<Real> block(lambda + first, h0 ? h0 + state : nullptr, count);
    Real sum[kChannelBlock] = {};
    Real carry[kChannelBlock] = {};  // a_{t+1} delta_{t+1}
    if (dh_last != nullptr) std::copy_n(dh_last + state, count, carry);

    for (int64_t t = time - 1; t >= 0; --t) {
      const int64_t row = (b * time + t) * channels + first;
      const Real *u_t = u + row, *zi_t = zi + row, *zr_t = zr + row, *dh_t = dh + row;
      const Real* before = t > 0 ? h + row - channels : block.initial;
      Real *du_t = du + row, *dzi_t = dzi + row, *dzr_t = dzr + row;
      if (positions[b * time + t] == 0) {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          const Real delta = dh_t[c] + carry[c];
          const Real i = Sigmoid(zi_t[c]);
          du_t[c] = delta * i;
          dzi_t[c] = delta * u_t[c] * i * (Real(1) - i);
          dzr_t[c] = Real(0);
          carry[c] = Real(0);
        }
        continue;
      }
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const Real delta = dh_t[c] + carry[c];
        const rg_lru::Gates<Real> g(zi_t[c], zr_t[c], block.rate[c]);
        // 1 / (2 m), the square root's slope, at most 1000.
        const Real slope = Real(1) / std::max(Real(2) * g.m, Real(1e-3));
        const Real dv = delta * g.m;
        const Real iu = g.i * u_t[c];
        const Real dl = delta * g.a * (before[c] - Real(2) * g.a * iu * slope);
        du_t[c] = dv * g.i;
        dzi_t[c] = dv * iu * (Real(1) - g.i);
        dzr_t[c] = block.rate[c] * dl * g.r * (Real(1) - g.r);
        sum[c] += g.r * dl;
        carry[c] = g.a * delta;
      }
    }
    std::copy_n(sum, count, decay_sum.data() + state);
    if (dh0 != nullptr) std::copy_n(carry, count, dh0 + state);
  });

  AddRowSum(decay_sum.data(), batch, channels, dlambda,
            [&](int64_t c) { return Real(-8) * Sigmoid(lambda[c]); });
}

template <class Real>
void RgLruSummaryCpu(const RgLruSummaryArgs& args) {
  const int64_t batch = args.u.dim(0), time = args.u.dim(1), channels = args.u.dim(2);
  const Real *u = args.u.data<Real>(), *zi = args.zi.data<Real>(), *zr = args.zr.data<Real>();
  const Real* lambda = args.lambda.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *decay = args.decay.data<Real>(), *increment = args.increment.data<Real>();

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const rg_lru::Block<Real> block(lambda + first, nullptr, count);
    Real *a = decay + b * channels + first, *h = increment + b * channels + first;
    std::fill_n(a, count, Real(1));
    std::fill_n(h, count, Real(0));
    for (int64_t t = 0; t < time; ++t) {
      const int64_t row = (b * time + t) * channels + first;
      const Real *u_t = u + row, *zi_t = zi + row, *zr_t = zr + row;
      if (positions[b * time + t] == 0) {
        std::fill_n(a, count, Real(0));
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) h[c] = Sigmoid(zi_t[c]) * u_t[c];
        continue;
      }
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const rg_lru::Gates<Real> g(zi_t[c], zr_t[c], block.rate[c]);
        h[c] = g.a * h[c] + g.m * g.i * u_t[c];
        a[c] *= g.a;
      }
    }
  });
}

template <class Real>
void RgLruGradSummaryCpu(const RgLruGradSummaryArgs& args) {
  const int64_t batch = args.dh.dim(0), time = args.dh.dim(1), channels = args.dh.dim(2);
  const Real *zr = args.zr.data<Real>(), *dh = args.dh.data<Real>();
  const Real* lambda = args.lambda.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *decay = args.decay.data<Real>(), *increment = args.increment.data<Real>();

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const rg_lru::Block<Real> block(lambda + first, nullptr, count);
    Real *a = decay + b * channels + first, *carry = increment + b * channels + first;
    std::fill_n(a, count, Real(1));
    std::fill_n(carry, count, Real(0));
    for (int64_t t = time - 1; t >= 0; --t) {
      const int64_t row = (b * time + t) * channels + first;
      if (positions[b * time + t] == 0) {
        std::fill_n(a, count, Real(0));
        std::fill_n(carry, count, Real(0));
        continue;
      }
      const Real *zr_t = zr + row, *dh_t = dh + row;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const Real a_t = Real(1) + Expm1(block.rate[c] * Sigmoid(zr_t[c]));
        carry[c] = a_t * (dh_t[c] + carry[c]);
        a[c] *= a_t;
      }
    }
  });
}

}  // namespace eyrie
