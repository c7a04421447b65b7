// CPU body of the RG-LRU: each task carries one block of channels of one sequence through time.
// B sequences, T tokens, R channels.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/partition.h"
#include "kernels/rg_lru/rg_lru.h"
#include "kernels/streaming.h"

namespace eyrie {
namespace rg_lru {

// Channels that take a step of the computation at once: few enough to stay in the first-level cache
// from one step to the next, and to leave the hardware's prefetcher its streams. Backward has more
// streams.
inline constexpr int64_t kForwardBlock = 128, kBackwardBlock = 64;

// Asks for a run of channels of the token that follows, `ahead` elements on. For rows of which a
// task takes a part: the hardware's prefetcher starts anew with each, and finds whole rows alone.
template <class Real>
void Prefetch(const Real* row, int64_t ahead, int64_t count) {
  if (ahead == 0) return;
  constexpr int64_t kLine = 64 / sizeof(Real);
  for (int64_t c = 0; c < count; c += kLine) __builtin_prefetch(row + ahead + c, 0, 2);
}

// The gates of a run of channels of one token, away from a document start. A loop takes
// one step of each, so that divisions go on under other arithmetic: see SigmoidByDivision.
template <class Real>
struct Gates {
  // `ahead` leads to the token that follows, whose gates are asked for; 0: not asked for.
  void Compute(const Real* zi, const Real* zr, const Real* rate, int64_t ahead, int64_t count) {
    Prefetch(zr, ahead, count);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) r[c] = SigmoidExp(zr[c]);
    Prefetch(zi, ahead, count);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      i[c] = SigmoidExp(zi[c]);
      r[c] = SigmoidByDivision(r[c]);
    }
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      i[c] = SigmoidByDivision(i[c]);
      e[c] = Expm1NonPositive(rate[c] * r[c]);
    }
  }
  void ComputeDecay(const Real* zr, const Real* rate, int64_t ahead, int64_t count) {
    Prefetch(zr, ahead, count);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) r[c] = SigmoidExp(zr[c]);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) r[c] = SigmoidByDivision(r[c]);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) e[c] = Expm1NonPositive(rate[c] * r[c]);
  }
  Real a(int64_t c) const { return Real(1) + e[c]; }
  // m = sqrt(1 - a^2), without cancellation, and its derivative by 1 - a^2.
  SquareRoot<Real> m(int64_t c) const { return SquareRoot<Real>(e[c] * (Real(-2) - e[c])); }

  static constexpr int64_t kMost = std::max(kForwardBlock, kBackwardBlock);
  Real i[kMost], r[kMost];
  Real e[kMost];  // a - 1
};

// Calls body(first, count) for each run of at most `block` of `channels` channels.
template <int64_t block, class Body>
void ForGateBlocks(int64_t channels, const Body& body) {
  for (int64_t first = 0; first < channels; first += block) {
    body(first, std::min(block, channels - first));
  }
}

// One token forward: h = a h + m i u.
template <class Real>
void Step(const Gates<Real>& gates, const Real* u, Real* h, int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    h[c] = gates.a(c) * h[c] + gates.m(c).root * gates.i[c] * u[c];
  }
}

// A row of a result, from a first-level cache to where it belongs.
template <class Real>
class RowWriter {
 public:
  // For `results` tensors of `elements` each.
  RowWriter(int64_t results, int64_t elements)
      : streams_(results * elements * static_cast<int64_t>(sizeof(Real)) >= kStreamedBytes) {}

  void Write(const Real* from, Real* to, int64_t count) const {
    if (streams_) {
      StreamingCopy(from, to, count);
    } else {
      std::copy_n(from, count, to);
    }
  }
  // This thread has written its last row.
  void Done() const {
    if (streams_) StreamingDone();
  }

 private:
  bool streams_;
};

// One token backward. In: carry = a_{t+1} delta_{t+1}; out: that of this token. Adds r dl to `sum`.
template <class Real>
void GradStep(const Gates<Real>& gates, const Real* rate, const Real* u, const Real* before,
              const Real* dh, Real* carry, Real* sum, Real* du, Real* dzi, Real* dzr,
              int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    const Real i = gates.i[c], r = gates.r[c], a = gates.a(c);
    const SquareRoot<Real> m = gates.m(c);
    const Real slope = std::min(m.slope, Real(1000));
    const Real delta = dh[c] + carry[c];
    const Real dv = delta * m.root;
    const Real iu = i * u[c];
    const Real dl = delta * a * (before[c] - Real(2) * a * iu * slope);
    du[c] = dv * i;
    dzi[c] = dv * iu * (Real(1) - i);
    dzr[c] = rate[c] * dl * r * (Real(1) - r);
    sum[c] += r * dl;
    carry[c] = a * delta;
  }
}

// The same at a document start: h = i u.
template <class Real>
void GradStart(const Real* u, const Real* zi, const Real* dh, Real* carry, Real* du, Real* dzi,
               Real* dzr, int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    const Real delta = dh[c] + carry[c];
    const Real i = Sigmoid(zi[c]);
    du[c] = delta * i;
    dzi[c] = delta * u[c] * i * (Real(1) - i);
    dzr[c] = Real(0);
    carry[c] = Real(0);
  }
}

template <class Real>
void AddTo(const Real* row, Real* sum, int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) sum[c] += row[c];
}

// The decay over one more token.
template <class Real>
void Decay(const Gates<Real>& gates, Real* decay, int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) decay[c] *= gates.a(c);
}

// What a block of channels starts from.
template <class Real>
struct Block {
  Block(const Real* lambda, const Real* h0, int64_t count) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) rate[c] = Real(-8) * Softplus(lambda[c]);
    if (h0 != nullptr) std::copy_n(h0, count, state);
  }
  Real rate[kChannelBlock];        // l = rate * r
  Real state[kChannelBlock] = {};  // h_{-1}
};

}  // namespace rg_lru

template <class Real>
void RgLruForwardCpu(const RgLruForwardArgs& args) {
  const int64_t batch = args.u.dim(0), time = args.u.dim(1), channels = args.u.dim(2);
  const Real *u = args.u.data<Real>(), *zi = args.zi.data<Real>(), *zr = args.zr.data<Real>();
  const Real *lambda = args.lambda.data<Real>(), *h0 = args.h0.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real *h = args.h.data<Real>(), *h_last = args.h_last.data<Real>();
  const rg_lru::RowWriter<Real> writer(1, args.h.size());

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const int64_t state = b * channels + first;
    rg_lru::Block<Real> block(lambda + first, h0 ? h0 + state : nullptr, count);
    Real* now = block.state;
    rg_lru::Gates<Real> gates;
    for (int64_t t = 0; t < time; ++t) {
      const int64_t row = (b * time + t) * channels + first;
      const Real *u_t = u + row, *zi_t = zi + row, *zr_t = zr + row;
      const bool starts = positions[b * time + t] == 0;
      const int64_t ahead = count < channels && t + 1 < time ? channels : 0;
      rg_lru::ForGateBlocks<rg_lru::kForwardBlock>(count, [&](int64_t k, int64_t n) {
        if (starts) {
#pragma omp simd
          for (int64_t c = 0; c < n; ++c) now[k + c] = Sigmoid(zi_t[k + c]) * u_t[k + c];
        } else {
          gates.Compute(zi_t + k, zr_t + k, block.rate + k, ahead, n);
          rg_lru::Prefetch(u_t + k, ahead, n);
          rg_lru::Step(gates, u_t + k, now + k, n);
        }
        writer.Write(now + k, h + row + k, n);
      });
    }
    writer.Done();
    if (h_last != nullptr) std::copy_n(now, count, h_last + state);
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

  const rg_lru::RowWriter<Real> writer(3, args.du.size());
  // Sums over time of r dl, dzi and dzr, [B, R].
  const auto states = static_cast<size_t>(batch * channels);
  std::vector<Real> decay_sum(states);
  std::vector<Real> dzi_sum(args.dzi_sum.defined() ? states : 0);
  std::vector<Real> dzr_sum(args.dzr_sum.defined() ? states : 0);

  ForChannelBlocks(batch, time, channels, [&](int64_t b, int64_t first, int64_t count) {
    const int64_t state = b * channels + first;
    const rg_lru::Block<Real> block(lambda + first, h0 ? h0 + state : nullptr, count);
    rg_lru::Gates<Real> gates;
    Real sum[kChannelBlock] = {};
    Real carry[kChannelBlock] = {};  // a_{t+1} delta_{t+1}
    Real du_k[rg_lru::kBackwardBlock], dzi_k[rg_lru::kBackwardBlock], dzr_k[rg_lru::kBackwardBlock];
    if (dh_last != nullptr) std::copy_n(dh_last + state, count, carry);

    for (int64_t t = time - 1; t >= 0; --t) {
      const int64_t row = (b * time + t) * channels + first;
      const Real *u_t = u + row, *zi_t = zi + row, *zr_t = zr + row, *dh_t = dh + row;
      const Real* before = t > 0 ? h + row - channels : block.state;
      const bool starts = positions[b * time + t] == 0;
      const int64_t ahead = t > 0 ? channels : 0;
      rg_lru::ForGateBlocks<rg_lru::kBackwardBlock>(count, [&](int64_t k, int64_t n) {
        if (starts) {
          rg_lru::GradStart(u_t + k, zi_t + k, dh_t + k, carry + k, du_k, dzi_k, dzr_k, n);
        } else {
          gates.Compute(zi_t + k, zr_t + k, block.rate + k, -ahead, n);
          rg_lru::Prefetch(u_t + k, -ahead, n);
          rg_lru::Prefetch(dh_t + k, -ahead, n);
          if (t > 1) rg_lru::Prefetch(before + k, -ahead, n);
          rg_lru::GradStep(gates, block.rate + k, u_t + k, before + k, dh_t + k, carry + k, sum + k,
                           du_k, dzi_k, dzr_k, n);
        }
        writer.Write(du_k, du + row + k, n);
        writer.Write(dzi_k, dzi + row + k, n);
        writer.Write(dzr_k, dzr + row + k, n);
        if (!dzi_sum.empty()) rg_lru::AddTo(dzi_k, dzi_sum.data() + state + k, n);
        if (!dzr_sum.empty()) rg_lru::AddTo(dzr_k, dzr_sum.data() + state + k, n);
      });
    }
    writer.Done();
    std::copy_n(sum, count, decay_sum.data() + state);
    if (dh0 != nullptr) std::copy_n(carry, count, dh0 + state);
  });

  AddRowSum(decay_sum.data(), batch, channels, dlambda,
            [&](int64_t c) { return Real(-8) * Sigmoid(lambda[c]); });
  if (args.dzi_sum.defined()) {
    AddRowSum(dzi_sum.data(), batch, channels, args.dzi_sum.data<Real>());
  }
  if (args.dzr_sum.defined()) {
    AddRowSum(dzr_sum.data(), batch, channels, args.dzr_sum.data<Real>());
  }
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
    rg_lru::Gates<Real> gates;
    Real *a = decay + b * channels + first, *h = increment + b * channels + first;
    std::fill_n(a, count, Real(1));
    std::fill_n(h, count, Real(0));
    for (int64_t t = 0; t < time; ++t) {
      const int64_t row = (b * time + t) * channels + first;
      const Real *u_t = u + row, *zi_t = zi + row, *zr_t = zr + row;
      const int64_t ahead = count < channels && t + 1 < time ? channels : 0;
      if (positions[b * time + t] == 0) {
        std::fill_n(a, count, Real(0));
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) h[c] = Sigmoid(zi_t[c]) * u_t[c];
        continue;
      }
      rg_lru::ForGateBlocks<rg_lru::kForwardBlock>(count, [&](int64_t k, int64_t n) {
        gates.Compute(zi_t + k, zr_t + k, block.rate + k, ahead, n);
        rg_lru::Prefetch(u_t + k, ahead, n);
        rg_lru::Step(gates, u_t + k, h + k, n);
        rg_lru::Decay(gates, a + k, n);
      });
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
    rg_lru::Gates<Real> gates;
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
      const int64_t ahead = t > 0 ? channels : 0;
      rg_lru::ForGateBlocks<rg_lru::kBackwardBlock>(count, [&](int64_t k, int64_t n) {
        gates.ComputeDecay(zr_t + k, block.rate + k, -ahead, n);
        rg_lru::Prefetch(dh_t + k, -ahead, n);
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) carry[k + c] = gates.a(c) * (dh_t[k + c] + carry[k + c]);
        rg_lru::Decay(gates, a + k, n);
      });
    }
  });
}

}  // namespace eyrie
