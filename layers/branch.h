// A residual branch, x + mixer(norm(x)). A block is one or two of them (a sequence mixer, then
// perhaps a channel mixer), and a model is a list.
#pragma once

#include <memory>

#include "layers/norm.h"

namespace eyrie {

class Branch {
 public:
  Branch(Norm norm, std::unique_ptr<Mixer> mixer)
      : norm_(std::move(norm)), mixer_(std::move(mixer)) {}

  void Declare(const Declaration& declare);
  void DeclareState(StateTable& table) const { mixer_->DeclareState(table); }
  double ExtraFlops(int64_t before, int64_t tokens) const {
    return mixer_->ExtraFlops(before, tokens);
  }
  // For a pass over run.positions' batch; no memory is taken yet.
  Stash MakeStash(const Run& run) const {
    const Communicator& sequence = run.mesh.sequence();
    return Stash(stash_table_, run.params.dtype(), run.batch(),
                 {.tokens = run.tokens(), .number = sequence.rank(), .count = sequence.size()});
  }

  // y := x + mixer(norm(x)). In a recompute pass y is absent. y must not be x.
  void Forward(Run& run, const Tensor& x, const Tensor& y, Stash& stash, const Carry& carry) const;
  // Fills the stash's cheap slots from x and the others (Mixer::Refill).
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const;
  // On entry d is the gradient of y, on return that of x.
  void Backward(Run& run, const Tensor& x, const Tensor& d, Stash& stash, const Carry& carry,
                const CarryGrad& carry_grad) const;

 private:
  Norm norm_;
  std::unique_ptr<Mixer> mixer_;
  StashTable stash_table_;
  SlotId normed_ = -1, statistics_ = -1;
};

}  // namespace eyrie
