#include "layers/branch.h"

namespace eyrie {

void Branch::Declare(const Declaration& declare) {
  Declaration own{declare.params, stash_table_, declare.tensor_size, declare.prefix};
  norm_.Declare(own);
  normed_ = stash_table_.AddCheap("normed", norm_.width());
  statistics_ = stash_table_.AddCheap("norm", norm_.statistics(), Holds::kFullPrecision);
  mixer_->Declare(own);
}

void Branch::Forward(Run& run, const Tensor& x, const Tensor& y, Stash& stash,
                     const Carry& carry) const {
  norm_.Forward(run, x, stash[normed_], stash[statistics_]);
  mixer_->Forward(run, stash[normed_], {y, x}, stash, carry);
}

void Branch::Infer(Run& run, const Tensor& x, const Tensor& added, const Tensor& y, Stash& stash,
                   const Carry& carry) const {
  norm_.Forward(run, x, stash[normed_], stash[statistics_], added);
  mixer_->Forward(run, stash[normed_], {.y = y, .residual = {}}, stash, carry);
}

void Branch::Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const {
  norm_.Forward(run, x, stash[normed_], stash[statistics_]);
  mixer_->Refill(run, stash[normed_], stash, carry);
}

void Branch::Backward(Run& run, const Tensor& x, const Tensor& d, Stash& stash, const Carry& carry,
                      const CarryGrad& carry_grad) const {
  ArenaScope scope(run.arena);
  const Tensor dnormed = run.Scratch(norm_.width());
  mixer_->Backward(run, stash[normed_], d, dnormed, stash, carry, carry_grad);
  norm_.Backward(run, x, stash[statistics_], dnormed, /*dresidual=*/d, /*dx=*/d);
}

}  // namespace eyrie
