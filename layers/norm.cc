#include "layers/norm.h"

#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"

namespace eyrie {
namespace {

// What LayerNorm saves, [N] each, and its rows as one group.
Tensor Mean(const Tensor& saved) { return saved.View({2, saved.size() / 2}).Rows(0, 1); }
Tensor Rstd(const Tensor& saved) { return saved.View({2, saved.size() / 2}).Rows(1, 2); }
Tensor OneGroup(const Tensor& x) {
  return x.defined() ? x.View({x.size() / x.dim(-1), 1, x.dim(-1)}) : x;
}

}  // namespace

void Norm::Declare(Declaration& declare) {
  if (!weighted()) return;
  weight_ = declare.params.Add(
      {.name = declare.prefix + name_ + ".w", .shape = {width_}, .init = InitConstant(0.0)});
}

void Norm::Forward(Run& run, const Tensor& x, const Tensor& y, const Tensor& saved) const {
  if (kind_ == config::ModelConfig::LAYER_NORM) {
    return LayerNormForward({.x = OneGroup(x),
                             .weight = Weight(run).View({1, width_}),
                             .epsilon = epsilon_,
                             .y = OneGroup(y),
                             .mean = Mean(saved),
                             .rstd = Rstd(saved)});
  }
  RmsNormForward({.x = x, .weight = Weight(run), .epsilon = epsilon_, .y = y, .rstd = saved});
}

void Norm::Backward(Run& run, const Tensor& x, const Tensor& saved, const Tensor& dy,
                    const Tensor& dresidual, const Tensor& dx) const {
  ArenaScope scope(run.arena);
  if (kind_ == config::ModelConfig::LAYER_NORM) {
    return LayerNormBackward({.x = OneGroup(x),
                              .weight = Weight(run).View({1, width_}),
                              .mean = Mean(saved),
                              .rstd = Rstd(saved),
                              .dy = OneGroup(dy),
                              .dresidual = OneGroup(dresidual),
                              .dx = OneGroup(dx),
                              .dweight = run.params.grad(weight_).View({1, width_}),
                              .workspace = run.Workspace(LayerNormBackwardWorkspace(OneGroup(x)))});
  }
  RmsNormBackward({.x = x,
                   .weight = Weight(run),
                   .rstd = saved,
                   .dy = dy,
                   .dresidual = dresidual,
                   .dx = dx,
                   .dweight = weighted() ? run.params.grad(weight_) : Tensor{},
                   .workspace = run.Workspace(weighted() ? RmsNormBackwardWorkspace(x) : 0)});
}

}  // namespace eyrie
