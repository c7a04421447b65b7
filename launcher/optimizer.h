// AdamW over a parameter store, with global gradient clipping. Updates the store's masters, or its
// values where these are their own masters. Works on what the rank owns: with ZeRO a share of the
// parameters, whose moments exist on no other replica.
#pragma once

#include <vector>

#include "configs/schema/config.pb.h"
#include "parallel/param_store.h"

namespace eyrie {

class Optimizer {
 public:
  Optimizer(const config::OptimizerConfig& config, ParamStore& params, const Mesh& mesh);

  // The norm of all reduced gradients, each parameter counted once; the same on every rank.
  double GradNorm();
  // One update; `step` counts from 1, `grad_norm` is GradNorm(), for clipping. The store gathers
  // the other replicas' shares while this returns.
  void Step(int64_t step, double learning_rate, double grad_norm);

  // First and second moments, laid out like the store's owned parts (BucketPlan::Part::owned).
  Tensor m() const { return m_.At(0, dtype_, {params_.plan().owned_elements()}); }
  Tensor v() const { return v_.At(0, dtype_, {params_.plan().owned_elements()}); }

  size_t moment_bytes() const { return m_.bytes() + v_.bytes(); }
  size_t workspace_bytes() const {
    return decays_.bytes() + squares_.buffer.bytes() + workspace_.buffer.bytes();
  }

 private:
  Tensor At(const Buffer& moment, const BucketPlan::Stretch& place) const;

  const config::OptimizerConfig& config_;
  ParamStore& params_;
  const Mesh& mesh_;
  DType dtype_;
  Buffer m_, v_;
  Buffer decays_;                             // AdamWArgs::decays of each of the store's stretches
  std::vector<BucketPlan::Stretch> counted_;  // what this rank adds to the norm
  OwnedTensor squares_, workspace_;           // of GradNorm
};

}  // namespace eyrie
