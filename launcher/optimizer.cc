#include "launcher/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw/adamw.h"

namespace eyrie {

Optimizer::Optimizer(const config::OptimizerConfig& config, ParamStore& params, const Mesh& mesh)
    : config_(config),
      params_(params),
      mesh_(mesh),
      dtype_(params.precision().moments),
      m_(static_cast<size_t>(params.plan().owned_elements()) * SizeOf(dtype_), params.device()),
      v_(m_.bytes(), params.device()),
      squares_(DType::kF64, {1}, params.device()) {
  int64_t elements = 0;
  for (const BucketPlan::Part& part : params.owned()) {
    elements = std::max(elements, SumOfSquaresWorkspace(params.owned_grad(part)));
  }
  if (elements > 0) workspace_ = OwnedTensor(DType::kF32, {elements}, params.device());
}

Tensor Optimizer::At(const Buffer& moment, const BucketPlan::Part& part) const {
  return moment.At(static_cast<size_t>(part.owned) * SizeOf(dtype_), dtype_, {part.range.size()});
}

double Optimizer::GradNorm() {
  FillZero(squares_.tensor);
  for (const BucketPlan::Part& part : params_.owned()) {
    const bool replicated = params_.table().spec(part.param).shard_axis < 0;
    if (replicated && mesh_.tensor().rank() != 0) continue;
    SumOfSquares(params_.owned_grad(part), squares_.tensor, workspace_.tensor);
  }
  double sum = 0.0;  // where nothing is computed there is nothing to read
  if (!IsMeta(params_.device())) {
    Copy(squares_.tensor, Tensor{&sum, DType::kF64, Device::kCpu, {1}});
  }
  // Owned parts differ from replica to replica with ZeRO, and are all there is without.
  Communicator& others = params_.plan().sharded() ? mesh_.world() : mesh_.tensor();
  return std::sqrt(AllReduceValue(others, sum, ReduceOp::kSum));
}

void Optimizer::Step(int64_t step, double learning_rate, double grad_norm) {
  const double clip = config_.gradient_clip();
  const double scale = clip > 0 && grad_norm > clip ? clip / grad_norm : 1.0;
  params_.GatherDone();
  int bucket = 0;  // all before it are on their way
  for (const BucketPlan::Part& part : params_.owned()) {
    while (bucket < part.bucket) params_.Gather(bucket++);
    const bool decays = params_.table().spec(part.param).weight_decay;
    AdamW({.param = params_.owned_master(part),
           .grad = params_.owned_grad(part),
           .m = At(m_, part),
           .v = At(v_, part),
           .copy = params_.owned_copy(part),
           .rate = learning_rate,
           .beta1 = config_.beta1(),
           .beta2 = config_.beta2(),
           .epsilon = config_.epsilon(),
           .weight_decay = decays ? config_.weight_decay() : 0.0,
           .grad_scale = scale,
           .step = step});
  }
  while (bucket < params_.plan().buckets()) params_.Gather(bucket++);
}

}  // namespace eyrie
