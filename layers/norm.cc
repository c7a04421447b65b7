#include "layers/norm.h"

#include "kernels/norm/rms_norm.h"

namespace eyrie {

void Norm::Declare(Declaration& declare) {
  if (!weighted_) return;
  weight_ = declare.params.Add(
      {.name = declare.prefix + name_ + ".w", .shape = {width_}, .init = InitConstant(0.0)});
}

void Norm::Forward(Run& run, const Tensor& x, const Tensor& y, const Tensor& rstd) const {
  RmsNormForward({.x = x, .weight = Weight(run), .epsilon = epsilon_, .y = y, .rstd = rstd});
}

void Norm::Backward(Run& run, const Tensor& x, const Tensor& rstd, const Tensor& dy,
                    const Tensor& dresidual, const Tensor& dx) const {
  ArenaScope scope(run.arena);
  RmsNormBackward({.x = x,
                   .weight = Weight(run),
                   .rstd = rstd,
                   .dy = dy,
                   .dresidual = dresidual,
                   .dx = dx,
                   .dweight = weighted_ ? run.params.grad(weight_) : Tensor{},
                   .workspace = run.Workspace(weighted_ ? RmsNormBackwardWorkspace(x) : 0)});
}

}  // namespace eyrie
