// What ranks that hold successive chunks of the same sequences send each other. Rank s of S holds
// tokens [s T, (s+1) T). Mixers describe what they need, as halos or as an associative carry; the
// messages travel until Wait, so that work can be done in between. These know no mixer's maths.
//
// A pass may itself be one of several over longer sequences (train.chunk_length). What goes from
// one pass to the next is held whole by every rank, and so is its gradient.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "core/memory.h"
#include "core/stash.h"
#include "parallel/communicator.h"

namespace eyrie {

// A halo of every row there is.
inline constexpr int64_t kAllRows = int64_t{1} << 40;

// The rows before a chunk, of `wanted`: those that exist.
inline int64_t HaloRows(const ChunkPlace& chunk, int64_t wanted) {
  return std::min(wanted, chunk.number * chunk.tokens);
}

// Fetches the rows that directly precede this rank's chunk, from as many ranks as they span.
class HaloExchange {
 public:
  // `tail` [B, N, C] holds the last N rows of this rank's chunk of `tokens` tokens, at least
  // min(wanted, tokens) of them. `halo` [B, HaloRows(...), C] receives. Buffers come from `arena`
  // and must outlive the exchange.
  HaloExchange(Communicator& sequence, Arena& arena, const Tensor& tail, int64_t tokens,
               int64_t wanted, const Tensor& halo);
  void Wait();

 private:
  struct Part {
    Tensor buffer;      // [B, rows, C], received
    int64_t first_row;  // in the halo
  };
  Tensor halo_;
  std::vector<Part> parts_;
  Event event_;
};

// The transpose: sends gradients of halo rows to the ranks that own the rows, and adds what comes
// from later ranks to this rank's own.
class HaloGradExchange {
 public:
  // Arguments as in HaloExchange; Wait adds to the last rows of `tail_grad` [B, N, C], which may
  // still be written until then.
  HaloGradExchange(Communicator& sequence, Arena& arena, const Tensor& halo_grad, int64_t tokens,
                   int64_t wanted, const Tensor& tail_grad);
  void Wait();

 private:
  struct Part {
    Tensor buffer;
    int64_t first_row;  // in tail_grad
  };
  Tensor tail_grad_;
  std::vector<Part> parts_;
  Event event_;
};

// The rows that the next pass may look back to: the last ones of all ranks' chunks together.
class TailExchange {
 public:
  // after [B, W, C] := the last W rows of [before [B, W, C]; every rank's `now` [B, T, C], in rank
  // order], on every rank. `before` absent: zeros.
  TailExchange(Communicator& sequence, Arena& arena, const Tensor& before, const Tensor& now,
               const Tensor& after);
  void Wait();

 private:
  struct Part {
    Tensor buffer;      // [B, rows, C]
    int64_t first_row;  // in `after`
    Event event;
  };
  Tensor before_, after_;
  std::vector<Part> parts_;
};

// The transpose: adds dafter's rows to this rank's dnow, and on the first rank to dbefore (absent:
// not wanted), so that the sum of dbefore over the ranks is its gradient. Sends nothing.
void TailGrad(const Communicator& sequence, const Tensor& dafter, const Tensor& dnow,
              const Tensor& dbefore);

// Composes what each chunk does to a carried state, an affine map state = decay * state + increment
// element by element: gives each rank the state that enters its own chunk.
class CarryScan {
 public:
  enum class Direction {
    kForward,   // chunks compose in the order of time
    kBackward,  // gradients: against it
  };
  // [n] elements each, in any shape; decay may be smaller, and then each of its elements is that of
  // n / its size successive ones.
  struct Args {
    Tensor decay, increment;  // what this rank's chunk does
    Tensor first;             // enters the first chunk; absent: zeros
    Tensor entering;          // out: what enters this rank's chunk
    Tensor leaving;           // out: what leaves the last chunk; optional
  };
  CarryScan(Communicator& sequence, Arena& arena, const Args& args, Direction direction);
  void Wait();

 private:
  int rank_, size_;
  Tensor gathered_;  // [S, elements of decay + n]
  Args args_;
  Direction direction_;
  Event event_;
};

// The same, in the order of time, for a state whose true values are exp(m) times what is held, so
// that decays and increments of any magnitude compose (mLSTM: Beck et al., arXiv:2503.14376,
// appendix A). A chunk multiplies true values by exp(log_decay) and adds its increment.
class StabilisedCarryScan {
 public:
  // c and n hold equally many successive elements for each element of m.
  struct State {
    Tensor c, n, m;
    bool defined() const { return m.defined(); }
  };
  struct Args {
    Tensor log_decay;  // like m
    State increment;
    State first;           // enters the first chunk; absent: zeros, with
    double first_m = 0.0;  // this in place of m
    State entering;        // out: what enters this rank's chunk
    State leaving;         // out: what leaves the last chunk; optional
  };
  StabilisedCarryScan(Communicator& sequence, Arena& arena, const Args& args);
  void Wait();

 private:
  int rank_, size_;
  Tensor gathered_;  // [S, elements of log_decay, m, c and n]
  Tensor keep_, add_;
  Args args_;
  Event event_;
};

// For a state that no summary of a chunk can advance: one rank after another runs `step`, which
// reads `entering` and writes `leaving`, and hands `leaving` to the next rank's `entering`. The
// first rank's `entering` is its own to fill, nobody receives the last one's `leaving`. Slices of a
// batch that take turns keep the other ranks busy meanwhile.
void Relay(Communicator& sequence, CarryScan::Direction direction,
           const std::vector<Tensor>& entering, const std::vector<Tensor>& leaving,
           const std::function<void()>& step);

}  // namespace eyrie
