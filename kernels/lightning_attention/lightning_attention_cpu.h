// CPU body of lightning attention: a task takes a head of a sequence through time, tile by tile.
// The tile's tokens see each other through a masked product and what came before through the state,
// all of them products of small matrices; tasks call BLAS single-threaded.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/blas.h"
#include "kernels/lightning_attention/lightning_pass.h"
#include "kernels/partition.h"
#include "kernels/row_math.h"

namespace eyrie {
namespace lightning {

// One head of one sequence.
template <class Real>
class HeadPass {
 public:
  HeadPass(const LightningPass& pass, int64_t b, int64_t h)
      : tokens_(pass.k.dim(1)),
        heads_(pass.k.dim(2)),
        keys_(pass.k.dim(3)),
        values_(pass.v.dim(3)),
        tile_(std::min<int64_t>(kLightningTile, tokens_)),
        reverse_(pass.reverse),
        positions_(pass.positions.data<int32_t>() + b * tokens_),
        state_(Size(keys_ * values_)),
        q_(Size(tile_ * keys_)),
        k_(q_.size()),
        v_(Size(tile_ * values_)),
        o_(v_.size()),
        scores_(Size(tile_ * tile_)),
        powers_(Size(tile_ + 1)) {
    const double rate = static_cast<double>(pass.rate.data<Real>()[h]);
    for (int64_t i = 0; i <= tile_; ++i) {
      powers_[Size(i)] = static_cast<Real>(std::exp(-rate * static_cast<double>(i)));
    }
  }

  void Load(const Real* from, bool transposed) { MoveState<true>(from, transposed); }
  void Store(Real* to, bool transposed) { MoveState<false>(to, transposed); }

  // The tile of tokens [begin, begin + n) in the order of the pass. The tensors start at this head
  // of this sequence; q and o are null if only the state is wanted.
  void Tile(int64_t begin, int64_t n, const Real* q, const Real* k, const Real* v, Real* o) {
    LookAtDocuments(begin, n);
    Gather(k, keys_, begin, n, k_.data());
    Gather(v, values_, begin, n, v_.data());
    if (o != nullptr) {
      Gather(q, keys_, begin, n, q_.data());
      Output(n);
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(o_.data() + i * values_, values_, o + Token(begin + i) * heads_ * values_);
      }
    }
    // S := decay S + (weighted k)^T v
    const Real decay = crosses_ ? powers_[Size(n)] : Real(0);
    for (int64_t i = 0; i < n; ++i) {
      const Real weight = seen_after_[Size(i)] ? powers_[Size(n - 1 - i + reverse_)] : Real(0);
      ScaleRow(weight, k_.data() + i * keys_, k_.data() + i * keys_, keys_);
    }
    Gemm(Trans::kYes, Trans::kNo, keys_, values_, n, Real(1), k_.data(), keys_, v_.data(), values_,
         decay, state_.data(), values_);
  }

 private:
  static size_t Size(int64_t count) { return static_cast<size_t>(count); }
  // The token that the pass comes to as the i-th.
  int64_t Token(int64_t i) const { return reverse_ ? tokens_ - 1 - i : i; }

  template <bool kLoad, class Pointer>
  void MoveState(Pointer memory, bool transposed) {
    for (int64_t i = 0; i < keys_; ++i) {
      for (int64_t j = 0; j < values_; ++j) {
        auto& there = memory[transposed ? j * keys_ + i : i * values_ + j];
        Real& here = state_[Size(i * values_ + j)];
        if constexpr (kLoad) {
          here = there;
        } else {
          there = here;
        }
      }
    }
  }

  void Gather(const Real* from, int64_t width, int64_t begin, int64_t n, Real* to) const {
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(from + Token(begin + i) * heads_ * width, width, to + i * width);
    }
  }

  // Which tokens of the tile see the state before it, which the one after it holds, and whether
  // the former is part of the latter.
  void LookAtDocuments(int64_t begin, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t token = Token(begin + i);
      documents_[Size(i)] = DocumentOf(token, positions_[token]);
    }
    const int64_t earliest = reverse_ ? n - 1 : 0;
    const bool back = ReachesBack(Token(begin + earliest), documents_[Size(earliest)]);
    for (int64_t i = 0; i < n; ++i) {
      sees_before_[Size(i)] = documents_[Size(i)] == documents_[0] && (reverse_ || back);
      seen_after_[Size(i)] = documents_[Size(i)] == documents_[Size(n - 1)] && (!reverse_ || back);
    }
    crosses_ = documents_[0] == documents_[Size(n - 1)] && back;
  }

  // o = (scores * decays) v + weighted (q S)
  void Output(int64_t n) {
    Gemm(Trans::kNo, Trans::kYes, n, n, keys_, Real(1), q_.data(), keys_, k_.data(), keys_, Real(0),
         scores_.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      Real* row = scores_.data() + i * n;
      for (int64_t j = 0; j < n; ++j) {
        const bool sees = j <= i && documents_[Size(i)] == documents_[Size(j)];
        row[j] = sees ? row[j] * powers_[Size(i - j)] : Real(0);
      }
      const Real weight = sees_before_[Size(i)] ? powers_[Size(i + 1 - reverse_)] : Real(0);
      ScaleRow(weight, q_.data() + i * keys_, q_.data() + i * keys_, keys_);
    }
    Gemm(Trans::kNo, Trans::kNo, n, values_, n, Real(1), scores_.data(), n, v_.data(), values_,
         Real(0), o_.data(), values_);
    Gemm(Trans::kNo, Trans::kNo, n, values_, keys_, Real(1), q_.data(), keys_, state_.data(),
         values_, Real(1), o_.data(), values_);
  }

  int64_t tokens_, heads_, keys_, values_, tile_;
  bool reverse_, crosses_ = false;
  const int32_t* positions_;
  std::vector<Real> state_, q_, k_, v_, o_, scores_;
  std::vector<Real> powers_;  // of lambda
  std::array<int64_t, kLightningTile> documents_{};
  std::array<bool, kLightningTile> sees_before_{}, seen_after_{};
};

}  // namespace lightning

template <class Real>
void LightningPassCpu(const LightningPass& pass) {
  const int64_t batch = pass.k.dim(0), tokens = pass.k.dim(1), heads = pass.k.dim(2);
  const int64_t keys = pass.k.dim(3), values = pass.v.dim(3), state = keys * values;
  ForPieces(batch * heads, batch * tokens * heads * (keys + values), [&](int64_t piece) {
    const int64_t b = piece / heads, h = piece % heads;
    lightning::HeadPass<Real> head(pass, b, h);
    if (pass.entering.defined()) {
      head.Load(pass.entering.data<Real>() + piece * state, pass.transposed);
    }
    const int64_t key_begin = (b * tokens * heads + h) * keys;
    const int64_t value_begin = (b * tokens * heads + h) * values;
    const bool outputs = pass.o.defined();
    for (int64_t begin = 0; begin < tokens; begin += kLightningTile) {
      head.Tile(begin, std::min<int64_t>(kLightningTile, tokens - begin),
                outputs ? pass.q.data<Real>() + key_begin : nullptr,
                pass.k.data<Real>() + key_begin, pass.v.data<Real>() + value_begin,
                outputs ? pass.o.data<Real>() + value_begin : nullptr);
    }
    if (pass.leaving.defined()) {
      head.Store(pass.leaving.data<Real>() + piece * state, pass.transposed);
    }
  });
}

template <class Real>
void LightningDecaysCpu(const Tensor& rate, const Tensor& positions, const Tensor& decay) {
  const int64_t batch = decay.dim(0), heads = decay.dim(1), tokens = positions.dim(1);
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t last = positions.data<int32_t>()[(b + 1) * tokens - 1];
    const bool crosses = DocumentOf(tokens - 1, last) < 0;
    for (int64_t h = 0; h < heads; ++h) {
      const Real all = std::exp(-rate.data<Real>()[h] * static_cast<Real>(tokens));
      decay.data<Real>()[b * heads + h] = crosses ? all : Real(0);
    }
  }
}

}  // namespace eyrie
