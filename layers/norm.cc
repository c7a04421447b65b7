#include "layers/norm.h"

#include "kernels/norm/rms_norm.h"

namespace eyrie {

void Norm::Declare(Declaration& declare) {
  weight_ = declare.params.Add(
      {.name = declare.prefix + name_ + ".w", .shape = {width_}, .init = InitConstant(0.0)});
}

void Norm::Forward(Run& run, const Tensor& x, const Tensor& y, const Tensor& rstd) const {
  RmsNormForward(
      {.x = x, .weight = run.params.value(weight_), .epsilon = epsilon_, .y = y, .rstd = rstd});
}

void Norm::Backward(Run& run, const Tensor& x, const Tensor& rstd, const Tensor& dy,
                    const Tensor& dresidual, const Tensor& dx) const {
  ArenaScope scope(run.arena);
  RmsNormBackward({.x = x,
                   .weight = run.params.value(weight_),
                   .rstd = rstd,
                   .dy = dy,
                   .dresidual = dresidual,
                   .dx = dx,
                   .dweight = run.params.grad(weight_),
                   .workspace = run.Workspace(RmsNormBackwardWorkspace(x))});
}

}  // namespace eyrie
