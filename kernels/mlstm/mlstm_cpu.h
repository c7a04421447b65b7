// CPU body of the mLSTM, chunk by chunk: the states between chunks one after another in a task for
// each head, then the chunks themselves in a task each. A few heads at a time, and a segment of
// some chunks of each: no more states than those of a segment are held at once, and in the backward
// pass, which takes segments last to first and computes their states anew, those before each
// segment. With chunks of one token the recurrence itself is computed, as when text is generated.
#pragma once

#include "core/round.h"
#include "kernels/mlstm/mlstm_chunk.h"

namespace eyrie {
namespace mlstm {

// Tokens of a chunk unless the caller chooses.
inline constexpr int64_t kChunk = 64;
// A segment has at least so many chunks.
inline constexpr int64_t kSegment = 16;

// How the tokens of a head are cut.
struct Cuts {
  Cuts(int64_t token_count, const MlstmOptions& options)
      : tokens(token_count),
        chunk(std::min(options.chunk > 0 ? options.chunk : kChunk, tokens)),
        chunks(CeilDiv(tokens, chunk)),
        segment(std::min(chunks, std::max(kSegment, static_cast<int64_t>(std::sqrt(chunks))))),
        segments(CeilDiv(chunks, segment)) {}
  int64_t SegmentSize(int64_t index) const { return std::min(segment, chunks - index * segment); }

  int64_t tokens, chunk, chunks;
  int64_t segment, segments;  // chunks of one, and how many
};

// The memory or its gradient between the chunks of a segment: `count` states of each head of
// [first, first + heads).
template <class Real>
class States {
 public:
  States(const Sizes& sizes, int64_t first, int64_t heads, int64_t count)
      : c_size_(sizes.keys * sizes.values),
        n_size_(sizes.keys),
        first_(first),
        count_(count),
        memory_(Size(heads * count * (c_size_ + n_size_))) {}
  StateView<Real> At(int64_t head, int64_t index) {
    Real* c = memory_.data() + ((head - first_) * count_ + index) * (c_size_ + n_size_);
    return {c, c + c_size_};
  }
  StateView<const Real> Get(int64_t head, int64_t index) { return Const(At(head, index)); }
  // Of states of the same heads.
  void CopyFrom(States& other, int64_t head, int64_t from, int64_t to) {
    std::copy_n(other.At(head, from).c, c_size_ + n_size_, At(head, to).c);
  }
  // An absent state is zero.
  void Load(const MlstmState& from, int64_t head, int64_t index) {
    const StateView<Real> to = At(head, index);
    if (from.c.defined()) {
      std::copy_n(from.c.data<Real>() + head * c_size_, c_size_, to.c);
      std::copy_n(from.n.data<Real>() + head * n_size_, n_size_, to.n);
    } else {
      std::fill_n(to.c, c_size_ + n_size_, Real(0));
    }
  }
  void Store(int64_t head, int64_t index, const MlstmState& to) {
    if (!to.c.defined()) return;
    const StateView<Real> from = At(head, index);
    std::copy_n(from.c, c_size_, to.c.data<Real>() + head * c_size_);
    std::copy_n(from.n, n_size_, to.n.data<Real>() + head * n_size_);
  }

 private:
  int64_t c_size_, n_size_, first_, count_;
  std::vector<Real> memory_;
};

// Calls body(first, count) for groups of heads, of one for each thread.
template <class Body>
void ForGroups(const Sizes& sizes, const Body& body) {
  const int64_t group = std::min<int64_t>(sizes.all_heads, Threads());
  for (int64_t first = 0; first < sizes.all_heads; first += group) {
    body(first, std::min(group, sizes.all_heads - first));
  }
}

// What all chunks of a call share.
template <class Real>
struct Walk {
  Walk(const Sizes& all_sizes, const MlstmOptions& options, const Factors<Real>& all_factors)
      : sizes(all_sizes), factors(all_factors), cuts(sizes.tokens, options) {}

  Chunk<Real> At(int64_t head, int64_t index) const {
    const int64_t begin = index * cuts.chunk;
    return {sizes, head, begin, std::min(cuts.chunk, cuts.tokens - begin), factors};
  }
  Chunk<Real> At(int64_t head, int64_t segment, int64_t i) const {
    return At(head, segment * cuts.segment + i);
  }
  // From the state before a segment, states[0], the ones after each of its chunks.
  void Advance(const Tensor& k, const Tensor& v, int64_t head, int64_t segment,
               States<Real>& states) const {
    for (int64_t i = 0; i < cuts.SegmentSize(segment); ++i) {
      At(head, segment, i).Advance(k, v, states.Get(head, i), states.At(head, i + 1));
    }
  }
  // From the gradient of the state after a segment, the last of dstates, the ones of those before.
  void Retreat(const Tensor& q, const Tensor& dh, const DenominatorGradients<Real>& denominators,
               int64_t head, int64_t segment, States<Real>& dstates) const {
    for (int64_t i = cuts.SegmentSize(segment) - 1; i >= 0; --i) {
      At(head, segment, i)
          .Retreat(q, dh, denominators, dstates.Get(head, i + 1), dstates.At(head, i));
    }
  }
  // Calls body(task) for `count` of them, which are a good part of all there is to do.
  template <class Body>
  void ForTasks(int64_t count, const Body& body) const {
    ForPieces(count, sizes.elements(), body);
  }
  // Calls body(head, i) for the chunks of a segment of some heads, counted in the segment.
  template <class Body>
  void ForChunks(int64_t first, int64_t heads, int64_t segment, const Body& body) const {
    const int64_t chunks = cuts.SegmentSize(segment);
    ForTasks(heads * chunks, [&](int64_t task) { body(first + task / chunks, task % chunks); });
  }

  const Sizes& sizes;
  const Factors<Real>& factors;
  const Cuts cuts;
};

// to = decay from + input x; sum += weight to.
template <class Real>
void StepRow(Real decay, const Real* from, Real input, const Real* x, Real* to, Real weight,
             Real* sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] = decay * from[i] + input * x[i];
    sum[i] += weight * to[i];
  }
}

// The recurrence of one head, token by token.
template <class Real>
void Recur(const MlstmForwardArgs& args, const Sizes& sizes, const Factors<Real>& factors,
           int64_t head) {
  const int64_t keys = sizes.keys, values = sizes.values;
  States<Real> scratch(sizes, head, 1, args.after.c.defined() ? 0 : 1);
  const StateView<Real> state = args.after.c.defined()
                                    ? ViewOf<Real>(sizes, args.after.c, args.after.n, head)
                                    : scratch.At(head, 0);
  StateView<const Real> from = Const(state);
  if (args.before.c.defined()) {
    from = Const(ViewOf<Real>(sizes, args.before.c, args.before.n, head));
  } else {
    std::fill_n(state.c, keys * values, Real(0));
    std::fill_n(state.n, keys, Real(0));
  }
  for (int64_t t = 0; t < sizes.tokens; ++t) {
    const int64_t row = sizes.Row(head, t);
    const Real *q = args.q.data<Real>() + row * keys, *k = args.k.data<Real>() + row * keys;
    const Real* v = args.v.data<Real>() + row * values;
    Real* h = args.h.data<Real>() + row * values;
    const Real decay = factors.decay[Size(head * sizes.tokens + t)];
    const Real input = factors.input[Size(head * sizes.tokens + t)];
    const auto scale = static_cast<Real>(sizes.scale);
    Real normaliser = 0;
    std::fill_n(h, values, Real(0));
    for (int64_t i = 0; i < keys; ++i) {
      StepRow(decay, from.c + i * values, input * k[i], v, state.c + i * values, scale * q[i], h,
              values);
      state.n[i] = decay * from.n[i] + input * k[i];
      normaliser += scale * q[i] * state.n[i];
    }
    args.normaliser.data<Real>()[row] = normaliser;
    const Real maximum = args.maximum.data<Real>()[row];
    ScaleRow(Real(1) / Denominator(normaliser, maximum, args.options), h, h, values);
    from = Const(state);
  }
}

// m of the state after the last token, for every head.
template <class Real>
void StoreLastMaximum(const Sizes& sizes, const Real* maximum, const Tensor& after_m) {
  for (int64_t head = 0; after_m.defined() && head < sizes.all_heads; ++head) {
    after_m.data<Real>()[head] = maximum[sizes.Row(head, sizes.tokens - 1)];
  }
}

}  // namespace mlstm

template <class Real>
void MlstmForwardCpu(const MlstmForwardArgs& args) {
  using namespace mlstm;
  const Sizes sizes(args.q, args.v);
  Real* maximum = args.maximum.data<Real>();
  const bool stabilised = args.options.stabilised;
  ScanMaximum(sizes, args.log_i, args.log_f, args.positions, args.before.m, stabilised, maximum);
  const Factors<Real> factors(sizes, args.log_i, args.log_f, args.positions, args.before.m,
                              stabilised, maximum);
  StoreLastMaximum(sizes, maximum, args.after.m);
  const Walk<Real> walk(sizes, args.options, factors);
  const Cuts& cuts = walk.cuts;
  if (cuts.chunk == 1) {
    ForHeads(sizes, [&](int64_t head) { Recur(args, sizes, factors, head); });
    return;
  }
  ForGroups(sizes, [&](int64_t first, int64_t heads) {
    States<Real> states(sizes, first, heads, cuts.segment + 1);
    walk.ForTasks(heads, [&](int64_t i) { states.Load(args.before, first + i, 0); });
    for (int64_t segment = 0; segment < cuts.segments; ++segment) {
      walk.ForTasks(heads,
                    [&](int64_t i) { walk.Advance(args.k, args.v, first + i, segment, states); });
      walk.ForChunks(first, heads, segment, [&](int64_t head, int64_t i) {
        walk.At(head, segment, i).Output(args, states.Get(head, i));
      });
      walk.ForTasks(heads, [&](int64_t i) {
        states.CopyFrom(states, first + i, cuts.SegmentSize(segment), 0);
      });
    }
    walk.ForTasks(heads, [&](int64_t i) { states.Store(first + i, 0, args.after); });
  });
}

template <class Real>
void MlstmBackwardCpu(const MlstmBackwardArgs& args) {
  using namespace mlstm;
  const Sizes sizes(args.q, args.v);
  const Factors<Real> factors(sizes, args.log_i, args.log_f, args.positions, args.before.m,
                              args.options.stabilised, args.maximum.data<Real>());
  const DenominatorGradients<Real> denominators(sizes, args);
  const Walk<Real> walk(sizes, args.options, factors);
  const Cuts& cuts = walk.cuts;
  ForGroups(sizes, [&](int64_t first, int64_t heads) {
    States<Real> starts(sizes, first, heads, cuts.segments);  // the states before segments
    States<Real> states(sizes, first, heads, cuts.segment + 1);
    States<Real> dstates(sizes, first, heads, cuts.segment + 1);
    walk.ForTasks(heads, [&](int64_t i) {
      const int64_t head = first + i;
      starts.Load(args.before, head, 0);
      for (int64_t segment = 0; segment + 1 < cuts.segments; ++segment) {
        states.CopyFrom(starts, head, segment, 0);
        walk.Advance(args.k, args.v, head, segment, states);
        starts.CopyFrom(states, head, cuts.segment, segment + 1);
      }
      dstates.Load(args.dafter, head, 0);
    });
    for (int64_t segment = cuts.segments - 1; segment >= 0; --segment) {
      walk.ForTasks(2 * heads, [&](int64_t task) {
        const int64_t head = first + task / 2;
        if (task % 2 == 0) {
          states.CopyFrom(starts, head, segment, 0);
          walk.Advance(args.k, args.v, head, segment, states);
        } else {
          dstates.CopyFrom(dstates, head, 0, cuts.SegmentSize(segment));
          walk.Retreat(args.q, args.dh, denominators, head, segment, dstates);
        }
      });
      walk.ForChunks(first, heads, segment, [&](int64_t head, int64_t i) {
        walk.At(head, segment, i)
            .Gradients(args, denominators, states.Get(head, i), states.Get(head, i + 1),
                       dstates.Get(head, i + 1));
      });
    }
    walk.ForTasks(heads, [&](int64_t i) { dstates.Store(first + i, 0, args.dbefore); });
  });
}

template <class Real>
void MlstmSummaryCpu(const MlstmSummaryArgs& args) {
  using namespace mlstm;
  const Sizes sizes(args.k, args.v);
  std::vector<Real> maximum(Size(args.log_i.size()));
  const bool stabilised = args.options.stabilised;
  ScanMaximum(sizes, args.log_i, args.log_f, args.positions, Tensor{}, stabilised, maximum.data());
  const Factors<Real> factors(sizes, args.log_i, args.log_f, args.positions, Tensor{}, stabilised,
                              maximum.data());
  StoreLastMaximum(sizes, maximum.data(), args.increment.m);
  const Walk<Real> walk(sizes, args.options, factors);
  FillZero(args.increment.c);
  FillZero(args.increment.n);
  ForHeads(sizes, [&](int64_t head) {
    const double log_decay = LogDecay<Real>(sizes, args.log_f, args.positions, head);
    args.log_decay.data<Real>()[head] = static_cast<Real>(log_decay);
    const StateView<Real> state = ViewOf<Real>(sizes, args.increment.c, args.increment.n, head);
    for (int64_t chunk = 0; chunk < walk.cuts.chunks; ++chunk) {
      walk.At(head, chunk).Advance(args.k, args.v, Const(state), state);
    }
  });
}

template <class Real>
void MlstmGradSummaryCpu(const MlstmGradSummaryArgs& args) {
  using namespace mlstm;
  const Sizes sizes(args.q, args.h);
  const bool stabilised = args.options.stabilised;
  const Factors<Real> factors(sizes, Tensor{}, args.log_f, args.positions, args.before_m,
                              stabilised, args.maximum.data<Real>());
  const DenominatorGradients<Real> denominators(sizes, args);
  const Walk<Real> walk(sizes, args.options, factors);
  FillZero(args.increment_c);
  FillZero(args.increment_n);
  ForHeads(sizes, [&](int64_t head) {
    const double before = EnteringMaximum<Real>(args.before_m, stabilised, head);
    const double after = EnteringMaximum<Real>(args.after_m, stabilised, head);
    const double log_decay = LogDecay<Real>(sizes, args.log_f, args.positions, head);
    args.decay.data<Real>()[head] = Exp(static_cast<Real>(log_decay + before - after));
    const StateView<Real> state = ViewOf<Real>(sizes, args.increment_c, args.increment_n, head);
    for (int64_t chunk = walk.cuts.chunks - 1; chunk >= 0; --chunk) {
      walk.At(head, chunk).Retreat(args.q, args.dh, denominators, Const(state), state);
    }
  });
}

}  // namespace eyrie
