// A problem of the mLSTM with all its outputs, and the cell's definition to compare with.
#pragma once

#include "kernels/mlstm/mlstm.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {

struct MlstmSizes {
  int64_t batch, time, heads, keys, values;
};

struct OwnedMlstmState {
  OwnedMlstmState() = default;
  OwnedMlstmState(DType dtype, const MlstmSizes& s, TestRandom& random)
      : c(RandomTensor(dtype, {s.batch, s.heads, s.keys, s.values}, random)),
        n(RandomTensor(dtype, {s.batch, s.heads, s.keys}, random)),
        m(RandomTensor(dtype, {s.batch, s.heads}, random)) {}
  static OwnedMlstmState Poisoned(DType dtype, const MlstmSizes& s) {
    OwnedMlstmState state;
    state.c = PoisonedTensor(dtype, {s.batch, s.heads, s.keys, s.values});
    state.n = PoisonedTensor(dtype, {s.batch, s.heads, s.keys});
    state.m = PoisonedTensor(dtype, {s.batch, s.heads});
    return state;
  }
  OwnedMlstmState CastTo(DType dtype) const {
    OwnedMlstmState state;
    state.c = Cast(c.tensor, dtype);
    state.n = Cast(n.tensor, dtype);
    state.m = Cast(m.tensor, dtype);
    return state;
  }
  MlstmState whole() const { return {.c = c.tensor, .n = n.tensor, .m = m.tensor}; }
  MlstmState gradient() const { return {.c = c.tensor, .n = n.tensor}; }

  OwnedTensor c, n, m;
};

inline double LogSigmoid(double x) {
  return -std::log1p(std::exp(-std::abs(x))) + std::min(x, 0.0);
}

struct MlstmProblem {
  // Gates have pre-activations of standard deviation `spread`; the input gate is exponential where
  // the cell is stabilised, else a sigmoid.
  MlstmProblem(DType dtype, const MlstmSizes& all_sizes, const MlstmOptions& all_options,
               TestRandom& random, double spread = 1)
      : sizes(all_sizes), options(all_options) {
    const auto& [batch, time, heads, keys, values] = sizes;
    q = RandomTensor(dtype, {batch, time, heads, keys}, random);
    k = RandomTensor(dtype, {batch, time, heads, keys}, random);
    v = RandomTensor(dtype, {batch, time, heads, values}, random);
    dh = RandomTensor(dtype, {batch, time, heads, values}, random);
    log_i = RandomTensor(dtype, {batch, time, heads}, random, spread);
    log_f = RandomTensor(dtype, {batch, time, heads}, random, spread);
    for (int64_t i = 0; i < log_i.tensor.size(); ++i) {
      if (!options.stabilised) Set(log_i.tensor, i, LogSigmoid(Get(log_i.tensor, i)));
      Set(log_f.tensor, i, LogSigmoid(Get(log_f.tensor, i) + 1));
    }
    positions = RandomPositions(batch, time, random, true);
    before = OwnedMlstmState(dtype, sizes, random);
    dafter = OwnedMlstmState(dtype, sizes, random);
    PrepareOutputs();
  }
  MlstmProblem(const MlstmProblem& other, DType dtype)
      : sizes(other.sizes),
        options(other.options),
        with_state(other.with_state),
        q(Cast(other.q.tensor, dtype)),
        k(Cast(other.k.tensor, dtype)),
        v(Cast(other.v.tensor, dtype)),
        dh(Cast(other.dh.tensor, dtype)),
        log_i(Cast(other.log_i.tensor, dtype)),
        log_f(Cast(other.log_f.tensor, dtype)),
        positions(Clone(other.positions.tensor)),
        before(other.before.CastTo(dtype)),
        dafter(other.dafter.CastTo(dtype)) {
    PrepareOutputs();
  }
  // Tokens [begin, end) of another, with its states; outputs are its own.
  MlstmProblem(const MlstmProblem& other, int64_t begin, int64_t end)
      : MlstmProblem(other, other.q.tensor.dtype) {
    sizes.time = end - begin;
    for (OwnedTensor MlstmProblem::*const input :
         {&MlstmProblem::q, &MlstmProblem::k, &MlstmProblem::v, &MlstmProblem::dh,
          &MlstmProblem::log_i, &MlstmProblem::log_f, &MlstmProblem::positions}) {
      this->*input = TimeSlice((other.*input).tensor, begin, end);
    }
    PrepareOutputs();
  }
  void PrepareOutputs() {
    const DType dtype = q.tensor.dtype;
    const auto poisoned = [&](const OwnedTensor& like) {
      return PoisonedTensor(dtype, like.tensor.shape);
    };
    h = poisoned(v);
    maximum = poisoned(log_i);
    normaliser = poisoned(log_i);
    after = OwnedMlstmState::Poisoned(dtype, sizes);
    dq = poisoned(q);
    dk = poisoned(k);
    dv = poisoned(v);
    dlog_i = poisoned(log_i);
    dlog_f = poisoned(log_f);
    dbefore = OwnedMlstmState::Poisoned(dtype, sizes);
  }
  void UseOneDocument() {
    for (int64_t i = 0; i < sizes.batch * sizes.time; ++i) {
      Set(positions.tensor, i, static_cast<double>(i % sizes.time + 3));
    }
  }

  void Forward() const {
    MlstmForward({.q = q.tensor,
                  .k = k.tensor,
                  .v = v.tensor,
                  .log_i = log_i.tensor,
                  .log_f = log_f.tensor,
                  .positions = positions.tensor,
                  .before = with_state ? before.whole() : MlstmState{},
                  .h = h.tensor,
                  .maximum = maximum.tensor,
                  .normaliser = normaliser.tensor,
                  .after = with_state ? after.whole() : MlstmState{},
                  .memories = memories.tensor,
                  .options = options,
                  .workspace = workspace.tensor});
  }
  // Has the next backward passes given what they else compute; of this problem's h on the CPU.
  void GiveProducts() {
    const Tensor outputs = h.tensor;
    const int64_t values = sizes.values;
    h_dh = OwnedTensor(outputs.dtype, normaliser.tensor.shape);
    for (int64_t row = 0; row < h_dh.tensor.size(); ++row) {
      double product = 0;
      for (int64_t i = row * values; i < (row + 1) * values; ++i) {
        product += Get(outputs, i) * Get(dh.tensor, i);
      }
      Set(h_dh.tensor, row, product);
    }
  }
  void Backward() const {
    MlstmBackward({.q = q.tensor,
                   .k = k.tensor,
                   .v = v.tensor,
                   .log_i = log_i.tensor,
                   .log_f = log_f.tensor,
                   .positions = positions.tensor,
                   .before = with_state ? before.whole() : MlstmState{},
                   .h = h.tensor,
                   .maximum = maximum.tensor,
                   .normaliser = normaliser.tensor,
                   .dh = dh.tensor,
                   .h_dh = h_dh.tensor,
                   .memories = memories.tensor,
                   .dafter = with_state ? dafter.gradient() : MlstmState{},
                   .after_m = with_state ? after.m.tensor : Tensor{},
                   .dq = dq.tensor,
                   .dk = dk.tensor,
                   .dv = dv.tensor,
                   .dlog_i = dlog_i.tensor,
                   .dlog_f = dlog_f.tensor,
                   .dbefore = with_state ? dbefore.gradient() : MlstmState{},
                   .options = options,
                   .workspace = workspace.tensor});
  }
  // b_t of token `row`, times exp(m_t): that of the true memory.
  double TrueDenominator(int64_t row) const {
    const double m = Get(maximum.tensor, row), normalised = std::abs(Get(normaliser.tensor, row));
    if (!options.normalised) return 1;
    return std::exp(m) * (std::max(normalised, std::exp(-m)) + options.epsilon);
  }
  // How near |n_t . q_t| comes to where the denominator has a kink, for any token.
  double DistanceFromKinks() const {
    double nearest = 1e300;
    for (int64_t i = 0; i < normaliser.tensor.size(); ++i) {
      const double floor = std::exp(-Get(maximum.tensor, i));
      nearest = std::min(nearest, std::abs(std::abs(Get(normaliser.tensor, i)) / floor - 1));
    }
    return nearest;
  }
  std::vector<std::pair<const char*, Tensor>> outputs_over_time() const {
    return {{"h", h.tensor},           {"maximum", maximum.tensor},
            {"dq", dq.tensor},         {"dk", dk.tensor},
            {"dv", dv.tensor},         {"dlog_i", dlog_i.tensor},
            {"dlog_f", dlog_f.tensor}, {"normaliser", normaliser.tensor}};
  }
  std::vector<std::pair<const char*, Tensor>> outputs() const {
    auto all = outputs_over_time();
    if (!with_state) return all;
    all.insert(all.end(), {{"after.c", after.c.tensor},
                           {"after.n", after.n.tensor},
                           {"after.m", after.m.tensor},
                           {"dbefore.c", dbefore.c.tensor},
                           {"dbefore.n", dbefore.n.tensor}});
    return all;
  }

  MlstmSizes sizes;
  MlstmOptions options;
  bool with_state = true;
  OwnedTensor q, k, v, dh, log_i, log_f, positions;
  OwnedMlstmState before, dafter;
  OwnedTensor h, maximum, normaliser, dq, dk, dv, dlog_i, dlog_f;
  OwnedTensor h_dh, memories;  // absent, unless given
  OwnedMlstmState after, dbefore;
  OwnedTensor workspace;  // on a GPU
};

// All outputs of two runs of the same problem.
inline void ExpectSameOutputs(const MlstmProblem& a, const MlstmProblem& b, double bound) {
  const auto left = a.outputs(), right = b.outputs();
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_LT(RelativeError(left[i].second, right[i].second), bound) << left[i].first;
  }
}

// The definition, each output from all tokens it sees: the weight of token s at token t is
// exp(i_s + f_{s+1} + ... + f_t), without a stabiliser.
struct MlstmReference {
  explicit MlstmReference(const MlstmProblem& problem)
      : h(DType::kF64, problem.v.tensor.shape),
        maximum(DType::kF64, problem.log_i.tensor.shape),
        normaliser(DType::kF64, problem.log_i.tensor.shape),
        after(OwnedMlstmState::Poisoned(DType::kF64, problem.sizes)),
        p_(problem) {
    for (int64_t b = 0; b < p_.sizes.batch; ++b) {
      for (int64_t head = 0; head < p_.sizes.heads; ++head) ComputeHead(b, head);
    }
  }
  OwnedTensor h, maximum, normaliser;
  OwnedMlstmState after;

 private:
  void ComputeHead(int64_t b, int64_t head) {
    const int64_t keys = p_.sizes.keys, values = p_.sizes.values;
    const int64_t state = b * p_.sizes.heads + head;
    for (int64_t t = 0; t < p_.sizes.time; ++t) {
      // The true memory after token t: C [keys, values], then n [keys].
      std::vector<double> c(static_cast<size_t>(keys * values)), n(static_cast<size_t>(keys));
      double log_weight = 0, m = -1e300;
      int64_t s = t;
      for (; s >= 0; --s) {
        const int64_t row = (b * p_.sizes.time + s) * p_.sizes.heads + head;
        const double exponent = log_weight + Get(p_.log_i.tensor, row);
        m = std::max(m, exponent);
        for (int64_t i = 0; i < keys; ++i) {
          const double key = std::exp(exponent) * Get(p_.k.tensor, row * keys + i);
          n[static_cast<size_t>(i)] += key;
          for (int64_t j = 0; j < values; ++j) {
            c[static_cast<size_t>(i * values + j)] += key * Get(p_.v.tensor, row * values + j);
          }
        }
        if (Get(p_.positions.tensor, b * p_.sizes.time + s) == 0) break;
        log_weight += Get(p_.log_f.tensor, row);
      }
      if (s < 0 && p_.with_state) {
        const double entering = p_.options.stabilised ? Get(p_.before.m.tensor, state) : 0;
        m = std::max(m, log_weight + entering);
        for (size_t i = 0; i < c.size(); ++i) {
          c[i] += std::exp(log_weight + entering) *
                  Get(p_.before.c.tensor, state * keys * values + static_cast<int64_t>(i));
        }
        for (size_t i = 0; i < n.size(); ++i) {
          n[i] += std::exp(log_weight + entering) *
                  Get(p_.before.n.tensor, state * keys + static_cast<int64_t>(i));
        }
      }
      if (!p_.options.stabilised) m = 0;
      ComputeToken((b * p_.sizes.time + t) * p_.sizes.heads + head, c, n, m);
      if (t + 1 < p_.sizes.time) continue;
      Set(after.m.tensor, state, m);
      for (size_t i = 0; i < c.size(); ++i) {
        Set(after.c.tensor, state * keys * values + static_cast<int64_t>(i), c[i] * std::exp(-m));
      }
      for (size_t i = 0; i < n.size(); ++i) {
        Set(after.n.tensor, state * keys + static_cast<int64_t>(i), n[i] * std::exp(-m));
      }
    }
  }

  void ComputeToken(int64_t row, const std::vector<double>& c, const std::vector<double>& n,
                    double m) {
    const int64_t keys = p_.sizes.keys, values = p_.sizes.values;
    const auto query = [&](int64_t i) {
      return Get(p_.q.tensor, row * keys + i) / std::sqrt(static_cast<double>(keys));
    };
    double along = 0;
    for (int64_t i = 0; i < keys; ++i) along += query(i) * n[static_cast<size_t>(i)];
    const double denominator = std::max(std::abs(along), 1.0) + p_.options.epsilon * std::exp(m);
    for (int64_t j = 0; j < values; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < keys; ++i) sum += query(i) * c[static_cast<size_t>(i * values + j)];
      Set(h.tensor, row * values + j, p_.options.normalised ? sum / denominator : sum);
    }
    Set(maximum.tensor, row, m);
    Set(normaliser.tensor, row, along * std::exp(-m));
  }

  const MlstmProblem& p_;
};

}  // namespace eyrie
