// CPU body of the selective scan: each task carries a block of channels of one sequence through
// time, all states of one token after another's. B sequences, T tokens, E channels, N states.
#pragma once

#include <algorithm>
#include <vector>

#include "core/round.h"
#include "core/vector_math.h"
#include "kernels/partition.h"
#include "kernels/selective_scan/selective_scan.h"

namespace eyrie {
namespace selective_scan {

inline constexpr int64_t kBlock = 64;  // channels of a task: blocks do not depend on threads
inline constexpr int64_t kChunk =
    16;  // tokens from one state that the backward pass keeps to the next

// What every kernel reads, at the first sequence and channel.
template <class Real>
struct Inputs {
  template <class Args>
  explicit Inputs(const Args& args)
      : time(args.dt.dim(1)),
        channels(args.dt.dim(2)),
        batch(args.dt.dim(0)),
        states(args.a_log.dim(1)),
        row(args.bc.dim(2)),
        dt(args.dt.template data<Real>()),
        bc(args.bc.template data<Real>()),
        a_log(args.a_log.template data<Real>()),
        dt_bias(args.dt_bias.template data<Real>()),
        positions(args.positions.template data<int32_t>()) {}
  int64_t blocks() const { return CeilDiv(channels, kBlock); }

  int64_t time, channels, batch, states, row;
  const Real *dt, *bc, *a_log, *dt_bias;
  const int32_t* positions;
};

// A state's numbers in the order of the computation, [N][kBlock], from a tensor [E, N] and back.
template <class Real>
void Load(const Real* from, int64_t count, int64_t states, Real* to) {
  for (int64_t n = 0; n < states; ++n) {
    for (int64_t c = 0; c < count; ++c) to[n * kBlock + c] = from[c * states + n];
  }
}
template <class Real>
void Store(const Real* from, int64_t count, int64_t states, Real* to) {
  for (int64_t n = 0; n < states; ++n) {
    for (int64_t c = 0; c < count; ++c) to[c * states + n] = from[n * kBlock + c];
  }
}

// A block of channels of one sequence, and the discretisation of its tokens.
template <class Real>
class Block {
 public:
  Block(const Inputs<Real>& inputs, int64_t b, int64_t first, int64_t block_count)
      : count(block_count),
        states(inputs.states),
        rate(static_cast<size_t>(states * kBlock)),
        inputs_(inputs),
        b_(b),
        first_(first) {
    Load(inputs.a_log + first * states, count, states, rate.data());
    for (Real& a : rate) a = -Exp(a);
  }

  int64_t Offset(int64_t t) const { return (b_ * inputs_.time + t) * inputs_.channels + first_; }
  // Of a tensor [B, E, N].
  int64_t StateOffset() const { return (b_ * inputs_.channels + first_) * states; }
  bool Starts(int64_t t) const { return inputs_.positions[b_ * inputs_.time + t] == 0; }
  const Real* B(int64_t t) const {
    return inputs_.bc + (b_ * inputs_.time + t + 1) * inputs_.row - 2 * states;
  }
  const Real* C(int64_t t) const { return B(t) + states; }

  // delta [kBlock] of token t.
  void Delta(int64_t t, Real* delta) const {
    const Real *dt = inputs_.dt + Offset(t), *bias = inputs_.dt_bias + first_;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) delta[c] = Softplus(dt[c] + bias[c]);
  }
  // d delta / d dt.
  void DeltaSlope(int64_t t, Real* slope) const {
    const Real *dt = inputs_.dt + Offset(t), *bias = inputs_.dt_bias + first_;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) slope[c] = Sigmoid(dt[c] + bias[c]);
  }
  // decay [N][kBlock] of a token; zeros where a document starts.
  void Decay(bool starts, const Real* delta, Real* decay) const {
    if (starts) {
      std::fill_n(decay, states * kBlock, Real(0));
      return;
    }
    for (int64_t n = 0; n < states; ++n) {
      const Real* a = rate.data() + n * kBlock;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) decay[n * kBlock + c] = Exp(delta[c] * a[c]);
    }
  }
  // after := decay * before + delta x B of token t; `before` may be `after`.
  void Step(int64_t t, const Real* x, const Real* before, Real* after, Real* decay) const {
    Real delta[kBlock];
    Delta(t, delta);
    Decay(Starts(t), delta, decay);
    const Real* weight = B(t);
    const Real* x_t = x + Offset(t);
    for (int64_t n = 0; n < states; ++n) {
      const Real *a = decay + n * kBlock, *h = before + n * kBlock;
      Real* result = after + n * kBlock;
      const Real b_n = weight[n];
      if (Starts(t)) {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) result[c] = delta[c] * x_t[c] * b_n;
      } else {
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) result[c] = a[c] * h[c] + delta[c] * x_t[c] * b_n;
      }
    }
  }
  // y [kBlock] := sum over n of C h + skip x of token t.
  void Output(int64_t t, const Real* x, const Real* skip, const Real* h, Real* y) const {
    const Real *x_t = x + Offset(t), *d = skip + first_, *weight = C(t);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) y[c] = d[c] * x_t[c];
    for (int64_t n = 0; n < states; ++n) {
      const Real c_n = weight[n];
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) y[c] += c_n * h[n * kBlock + c];
    }
  }

  int64_t count, states;
  std::vector<Real> rate;  // A [N][kBlock]

 private:
  const Inputs<Real>& inputs_;
  int64_t b_, first_;
};

// Calls body(piece, block) for each block of channels of each sequence.
template <class Real, class Body>
void ForBlocks(const Inputs<Real>& inputs, const Body& body) {
  const int64_t blocks = inputs.blocks();
  const int64_t elements = inputs.batch * inputs.time * inputs.channels * inputs.states;
  ForPieces(inputs.batch * blocks, elements, [&](int64_t piece) {
    const int64_t first = piece % blocks * kBlock;
    body(piece,
         Block<Real>(inputs, piece / blocks, first, std::min(kBlock, inputs.channels - first)));
  });
}

// The gradient of what the gate multiplies, dy = dout silu(z).
template <class Real>
void GateGradient(const Real* z, const Real* dout, Real* dy, int64_t count) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) dy[c] = dout[c] * z[c] * Sigmoid(z[c]);
}

// What one token contributes to gradients of B, C and the parameters, and takes from the state's.
template <class Real>
struct TokenGrads {
  Real dx[kBlock], ddelta[kBlock], dy[kBlock], delta[kBlock];
};

// One token back. `carry` [N][kBlock]: in, the gradient that the token after it hands over, decayed
// already; out, that of this token. Adds the gradient of A to `drate`.
template <class Real>
void StateGrads(const Block<Real>& block, int64_t t, const Real* x_t, const Real* before,
                const Real* after, const Real* decay, Real* carry, Real* drate, Real* dbc,
                TokenGrads<Real>& grads) {
  const Real *weight = block.B(t), *read = block.C(t);
  Real through[kBlock] = {};  // sum over n of g B
  for (int64_t n = 0; n < block.states; ++n) {
    const Real b_n = weight[n], c_n = read[n];
    const Real *a = decay + n * kBlock, *h = after + n * kBlock, *h_before = before + n * kBlock;
    const Real* rate = block.rate.data() + n * kBlock;
    Real *k = carry + n * kBlock, *da = drate + n * kBlock;
    Real db = 0, dc = 0;
#pragma omp simd reduction(+ : db, dc)
    for (int64_t c = 0; c < block.count; ++c) {
      const Real g = k[c] + c_n * grads.dy[c];
      const Real kept = g * a[c] * h_before[c];
      dc += grads.dy[c] * h[c];
      db += g * grads.delta[c] * x_t[c];
      through[c] += g * b_n;
      grads.ddelta[c] += kept * rate[c];
      da[c] += kept * grads.delta[c];
      k[c] = a[c] * g;
    }
    dbc[n] = db;
    dbc[block.states + n] = dc;
  }
#pragma omp simd
  for (int64_t c = 0; c < block.count; ++c) {
    grads.dx[c] += grads.delta[c] * through[c];
    grads.ddelta[c] += x_t[c] * through[c];
  }
}

}  // namespace selective_scan

template <class Real>
void SelectiveScanForwardCpu(const SelectiveScanForwardArgs& args) {
  using namespace selective_scan;
  const Inputs<Real> inputs(args);
  const Real *x = args.x.data<Real>(), *z = args.z.data<Real>(), *skip = args.skip.data<Real>();
  const Real* h0 = args.h0.data<Real>();
  Real *out = args.out.data<Real>(), *h_last = args.h_last.data<Real>();

  ForBlocks(inputs, [&](int64_t, const Block<Real>& block) {
    const auto size = static_cast<size_t>(block.states * kBlock);
    std::vector<Real> h(size), decay(size);
    Real y[kBlock];
    if (h0 != nullptr) Load(h0 + block.StateOffset(), block.count, block.states, h.data());
    for (int64_t t = 0; t < inputs.time; ++t) {
      block.Step(t, x, h.data(), h.data(), decay.data());
      block.Output(t, x, skip, h.data(), y);
      const Real* z_t = z + block.Offset(t);
      Real* out_t = out + block.Offset(t);
#pragma omp simd
      for (int64_t c = 0; c < block.count; ++c) out_t[c] = y[c] * z_t[c] * Sigmoid(z_t[c]);
    }
    if (h_last != nullptr) {
      Store(h.data(), block.count, block.states, h_last + block.StateOffset());
    }
  });
}

template <class Real>
void SelectiveScanBackwardCpu(const SelectiveScanBackwardArgs& args) {
  using namespace selective_scan;
  const Inputs<Real> inputs(args);
  const int64_t states = inputs.states, time = inputs.time, channels = inputs.channels;
  const int64_t pair = 2 * states, blocks = inputs.blocks();
  const Real *x = args.x.data<Real>(), *z = args.z.data<Real>(), *skip = args.skip.data<Real>();
  const Real *h0 = args.h0.data<Real>(), *dh_last = args.dh_last.data<Real>();
  const Real* dout = args.dout.data<Real>();
  Real *dx = args.dx.data<Real>(), *ddt = args.ddt.data<Real>(), *dz = args.dz.data<Real>();
  Real* dh0 = args.dh0.data<Real>();

  // Each block's share of dB and dC, [B, blocks, T, 2N], and each sequence's of the parameters'
  // gradients: [B, E, N] and twice [B, E].
  std::vector<Real> dbc_shares(static_cast<size_t>(inputs.batch * blocks * time * pair));
  std::vector<Real> drate(static_cast<size_t>(inputs.batch * channels * states));
  std::vector<Real> dskip(static_cast<size_t>(inputs.batch * channels)), dbias(dskip.size());

  ForBlocks(inputs, [&](int64_t piece, const Block<Real>& block) {
    const auto size = static_cast<size_t>(states * kBlock);
    const int64_t count = block.count, chunks = CeilDiv(time, kChunk);
    std::vector<Real> carry(size), own_drate(size), none(size);
    // The state before each chunk; then, of one chunk, the state before each token and the decays.
    std::vector<Real> kept(static_cast<size_t>(chunks) * size);
    std::vector<Real> h((kChunk + 1) * size), decay(kChunk * size);
    if (h0 != nullptr) Load(h0 + block.StateOffset(), count, states, h.data());
    for (int64_t t = 0; t < time; ++t) {
      if (t % kChunk == 0) {
        std::copy_n(h.data(), size, kept.data() + static_cast<size_t>(t / kChunk) * size);
      }
      block.Step(t, x, h.data(), h.data(), decay.data());
    }
    if (dh_last != nullptr) Load(dh_last + block.StateOffset(), count, states, carry.data());

    Real* own_dskip = dskip.data() + block.StateOffset() / states;
    Real* own_dbias = dbias.data() + block.StateOffset() / states;
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(time, begin + kChunk);
      std::copy_n(kept.data() + static_cast<size_t>(chunk) * size, size, h.data());
      const auto at = [&](std::vector<Real>& of, int64_t t) {
        return of.data() + static_cast<size_t>(t - begin) * size;
      };
      for (int64_t t = begin; t < end; ++t) {
        block.Step(t, x, at(h, t), at(h, t + 1), at(decay, t));
      }
      for (int64_t t = end - 1; t >= begin; --t) {
        TokenGrads<Real> grads = {};
        Real y[kBlock], slope[kBlock];
        const int64_t offset = block.Offset(t);
        const Real *x_t = x + offset, *z_t = z + offset, *dout_t = dout + offset;
        const Real* d = skip + block.Offset(0) % channels;
        block.Delta(t, grads.delta);
        block.DeltaSlope(t, slope);
        block.Output(t, x, skip, at(h, t + 1), y);
        GateGradient(z_t, dout_t, grads.dy, count);
        StateGrads(block, t, x_t, block.Starts(t) ? none.data() : at(h, t), at(h, t + 1),
                   at(decay, t), carry.data(), own_drate.data(),
                   dbc_shares.data() + (piece * time + t) * pair, grads);
        if (block.Starts(t)) std::fill(carry.begin(), carry.end(), Real(0));
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          const Real s = Sigmoid(z_t[c]), gate = dout_t[c];
          const Real raw = grads.ddelta[c] * slope[c];
          dz[offset + c] = gate * y[c] * s * (Real(1) + z_t[c] * (Real(1) - s));
          dx[offset + c] = grads.dx[c] + d[c] * grads.dy[c];
          ddt[offset + c] = raw;
          own_dskip[c] += grads.dy[c] * x_t[c];
          own_dbias[c] += raw;
        }
      }
    }
    Store(own_drate.data(), count, states, drate.data() + block.StateOffset());
    if (dh0 != nullptr) Store(carry.data(), count, states, dh0 + block.StateOffset());
  });

  const int64_t row = inputs.row;
  Real* dbc = args.dbc.data<Real>();
  ForPieces(inputs.batch * time, inputs.batch * time * pair * blocks, [&](int64_t token) {
    const int64_t b = token / time, t = token % time;
    Real* to = dbc + (token + 1) * row - pair;
    std::fill_n(to, pair, Real(0));
    for (int64_t block = 0; block < blocks; ++block) {
      const Real* share = dbc_shares.data() + ((b * blocks + block) * time + t) * pair;
      for (int64_t i = 0; i < pair; ++i) to[i] += share[i];
    }
  });
  // dA_log = dA A.
  AddRowSum(drate.data(), inputs.batch, channels * states, args.da_log.data<Real>(),
            [&](int64_t i) { return -Exp(inputs.a_log[i]); });
  AddRowSum(dskip.data(), inputs.batch, channels, args.dskip.data<Real>());
  AddRowSum(dbias.data(), inputs.batch, channels, args.ddt_bias.data<Real>());
}

namespace selective_scan {

// decay [E, N] := the product of all tokens' decays, exp(A sum of delta).
template <class Real>
void WholeDecay(const Block<Real>& block, int64_t time, Real* to) {
  Real delta[kBlock], sum[kBlock] = {};
  bool starts = false;
  for (int64_t t = 0; t < time; ++t) {
    starts = starts || block.Starts(t);
    block.Delta(t, delta);
#pragma omp simd
    for (int64_t c = 0; c < block.count; ++c) sum[c] += delta[c];
  }
  std::vector<Real> decay(static_cast<size_t>(block.states * kBlock));
  block.Decay(starts, sum, decay.data());
  Store(decay.data(), block.count, block.states, to + block.StateOffset());
}

}  // namespace selective_scan

template <class Real>
void SelectiveScanSummaryCpu(const SelectiveScanSummaryArgs& args) {
  using namespace selective_scan;
  const Inputs<Real> inputs(args);
  const Real* x = args.x.data<Real>();
  ForBlocks(inputs, [&](int64_t, const Block<Real>& block) {
    const auto size = static_cast<size_t>(block.states * kBlock);
    std::vector<Real> h(size), decay(size);
    for (int64_t t = 0; t < inputs.time; ++t) {
      block.Step(t, x, h.data(), h.data(), decay.data());
    }
    Store(h.data(), block.count, block.states, args.increment.data<Real>() + block.StateOffset());
    WholeDecay(block, inputs.time, args.decay.data<Real>());
  });
}

template <class Real>
void SelectiveScanGradSummaryCpu(const SelectiveScanGradSummaryArgs& args) {
  using namespace selective_scan;
  const Inputs<Real> inputs(args);
  const Real *z = args.z.data<Real>(), *dout = args.dout.data<Real>();
  ForBlocks(inputs, [&](int64_t, const Block<Real>& block) {
    const auto size = static_cast<size_t>(block.states * kBlock);
    std::vector<Real> carry(size), decay(size);
    Real delta[kBlock], dy[kBlock];
    for (int64_t t = inputs.time - 1; t >= 0; --t) {
      if (block.Starts(t)) {
        std::fill(carry.begin(), carry.end(), Real(0));
        continue;
      }
      block.Delta(t, delta);
      block.Decay(/*starts=*/false, delta, decay.data());
      GateGradient(z + block.Offset(t), dout + block.Offset(t), dy, block.count);
      const Real* read = block.C(t);
      for (int64_t n = 0; n < block.states; ++n) {
        Real *k = carry.data() + n * kBlock, *a = decay.data() + n * kBlock;
        const Real c_n = read[n];
#pragma omp simd
        for (int64_t c = 0; c < block.count; ++c) k[c] = a[c] * (k[c] + c_n * dy[c]);
      }
    }
    Store(carry.data(), block.count, block.states,
          args.increment.data<Real>() + block.StateOffset());
    WholeDecay(block, inputs.time, args.decay.data<Real>());
  });
}

}  // namespace eyrie
