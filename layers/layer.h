// What every layer is given and what it must offer. Notation throughout this folder: B sequences,
// T tokens, D model width; activations are [B, T, width], row-major, in the store's dtype, on its
// device.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/param_table.h"
#include "core/stash.h"
#include "parallel/mesh.h"
#include "parallel/param_store.h"
#include "parallel/trace.h"

namespace eyrie {

enum class Pass {
  kTrain,      // forward, saving for backward
  kRecompute,  // forward again, only to refill the stash; communicates nothing
  kEval,       // forward alone
};

// What an observer is shown of a layer: its output, or in backward the gradient of its input.
enum class Seen { kOutput, kGradient };

// All a layer may touch: built by the launcher, passed down, never global.
struct Run {
  const Mesh& mesh;
  ParamStore& params;
  Arena& arena;  // scratch is rewound when the call that took it returns
  Pass pass = Pass::kEval;
  Tensor positions;  // [B, T] int32: of each token inside its document
  // Backward is the last of its sequences to add to the gradients, which may then leave.
  bool completes_gradients = true;
  Trace* trace = nullptr;  // of what this rank does when; null: none

  // Where set, the model shows it what each layer of a training pass computes, in order.
  std::function<void(Seen, const std::string& layer, const Tensor&)> observe;

  void Show(Seen seen, const std::string& layer, const Tensor& tensor) const {
    if (observe) observe(seen, layer, tensor);
  }
  int64_t batch() const { return positions.dim(0); }
  int64_t tokens() const { return positions.dim(1); }
  // What a kernel asks for as its workspace.
  Tensor Workspace(int64_t elements) {
    return elements == 0 ? Tensor{} : arena.Allocate(DType::kF32, {elements});
  }
  // Scratch [B, T, width].
  Tensor Scratch(int64_t width) {
    return arena.Allocate(params.dtype(), {batch(), tokens(), width});
  }
  // The same in full precision.
  Tensor FullScratch(int64_t width) {
    return arena.Allocate(FullPrecision(params.dtype()), {batch(), tokens(), width});
  }
};

// Where a layer declares its parameters and saved activations, before memory is taken.
struct Declaration {
  ParamTable& params;
  StashTable& stash;
  int tensor_size;     // ranks on the tensor axis: widths of saved activations are local
  std::string prefix;  // of parameter names, e.g. "blocks.3."
};

// The state before and after this chunk of the sequence; null: the sequence's start, not wanted.
// Where ranks of the sequence axis hold parts of the chunk, it is the state before the first rank's
// part and after the last one's, and every rank holds all of it.
struct Carry {
  const State* before = nullptr;
  State* after = nullptr;
};

// Gradients of the same: null: no later chunk, not wanted. `before` is overwritten. Every rank
// of the sequence axis is given the whole gradient, and must leave the whole one.
struct CarryGrad {
  const State* after = nullptr;
  State* before = nullptr;
};

// Where a residual branch leaves its sum: y [B, T, D] := residual + what the mixer gives, complete
// on every tensor rank. Without a residual y is the latter alone.
struct BranchOutput {
  Tensor y, residual;
};

// The body of a residual branch x + mixer(norm(x)): a sequence mixer or a channel mixer.
// docs/adding-a-mixer.md walks through one.
class Mixer {
 public:
  virtual ~Mixer() = default;

  virtual void Declare(Declaration& declare) = 0;
  // Mixers without a state declare nothing.
  virtual void DeclareState(StateTable&) const {}

  // FLOPs of forward on one sequence's `tokens` tokens that follow `before` earlier ones, on this
  // tensor rank, beside the two for each token and element of a matrix: what attention does with
  // its scores and values, and four for each token and element of a matrix memory, which takes in
  // one outer product and is read once, whatever a kernel does to compute that. For planning.
  virtual double ExtraFlops(int64_t /*before*/, int64_t /*tokens*/) const { return 0.0; }

  // Leaves mixer(x) in `out`. In a recompute pass that is absent and only the stash is filled,
  // without communication.
  virtual void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
                       const Carry& carry) = 0;
  // Fills the stash's cheap slots (StashTable::AddCheap) from x and the others, with the bits that
  // Forward left there, and without communication. `carry` is the forward pass's own. Mixers
  // without such slots leave it out.
  virtual void Refill(Run&, const Tensor& /*x*/, Stash&, const Carry&) const {}
  // dx [B, T, D] := gradient of x, complete on every tensor rank; adds into the parameters'
  // gradients. `carry` is the forward pass's own.
  virtual void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                        const Carry& carry, const CarryGrad& carry_grad) = 0;
};

// An optional state's tensor: absent where there is no state.
inline Tensor StateSlot(const State* state, SlotId id) {
  return state == nullptr ? Tensor{} : (*state)[id];
}

}  // namespace eyrie
