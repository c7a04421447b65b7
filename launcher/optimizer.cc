#include "launcher/optimizer.h"

#include <cmath>

#include "kernels/adamw/adamw.h"

namespace eyrie {

Optimizer::Optimizer(const config::OptimizerConfig& config, const ParamStore& params,
                     const Mesh& mesh)
    : config_(config),
      params_(params),
      mesh_(mesh),
      m_(static_cast<size_t>(params.elements()) * SizeOf(params.dtype())),
      v_(static_cast<size_t>(params.elements()) * SizeOf(params.dtype())) {}

double Optimizer::GradNorm() const {
  double sum = 0.0;
  const auto& specs = params_.table().specs();
  for (ParamId id = 0; id < static_cast<ParamId>(specs.size()); ++id) {
    const bool replicated = specs[static_cast<size_t>(id)].shard_axis < 0;
    if (replicated && mesh_.tensor().rank() != 0) continue;
    sum += SumOfSquares(params_.grad(id));
  }
  return std::sqrt(AllReduceValue(mesh_.tensor(), sum, ReduceOp::kSum));
}

void Optimizer::Step(int64_t step, double learning_rate, double grad_norm) {
  const double clip = config_.gradient_clip();
  const double scale = clip > 0 && grad_norm > clip ? clip / grad_norm : 1.0;
  const auto& specs = params_.table().specs();
  for (ParamId id = 0; id < static_cast<ParamId>(specs.size()); ++id) {
    const bool decays = specs[static_cast<size_t>(id)].weight_decay;
    AdamW({.param = params_.value(id),
           .grad = params_.grad(id),
           .m = params_.At(m_, id),
           .v = params_.At(v_, id),
           .rate = learning_rate,
           .beta1 = config_.beta1(),
           .beta2 = config_.beta2(),
           .epsilon = config_.epsilon(),
           .weight_decay = decays ? config_.weight_decay() : 0.0,
           .grad_scale = scale,
           .step = step});
  }
}

}  // namespace eyrie
