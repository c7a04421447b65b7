// What ranks that hold successive chunks of the same sequences send each other. Rank s of S holds
// tokens [s T, (s+1) T). Mixers describe what they need, as halos or as an associative carry; the
// messages travel until Wait, so that work can be done in between. These know no mixer's maths.
#pragma once

#include <algorithm>
#include <vector>

#include "core/memory.h"
#include "parallel/communicator.h"

namespace eyrie {

// A halo of every row there is.
inline constexpr int64_t kAllRows = int64_t{1} << 40;

// The rows before chunk number `chunk`, of `wanted`: those that exist.
inline int64_t HaloRows(int64_t tokens, int64_t chunk, int64_t wanted) {
  return std::min(wanted, chunk * tokens);
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
    Tensor buffer;      // [B, rows, C]
    int64_t first_row;  // in the halo
    Event event;
  };
  Tensor halo_;
  std::vector<Part> received_;
  std::vector<Event> sent_;
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
    Event event;
  };
  Tensor tail_grad_;
  std::vector<Part> received_;
  std::vector<Event> sent_;
};

// Composes what each chunk does to a carried state, an affine map state = decay * state + increment
// element by element: gives each rank the state that enters its chunk, when zero enters the first.
class CarryScan {
 public:
  enum class Direction {
    kForward,   // chunks compose in the order of time
    kBackward,  // gradients: against it
  };
  // decay, increment, result: [n] elements in any shape.
  CarryScan(Communicator& sequence, Arena& arena, const Tensor& decay, const Tensor& increment,
            const Tensor& result, Direction direction);
  void Wait();

 private:
  int rank_, size_;
  Tensor gathered_;  // [S, 2, n]
  Tensor result_;
  Direction direction_;
  Event event_;
};

}  // namespace eyrie
