// The norm before a branch and before the head: RMSNorm with weight 1 + w, w replicated and
// starting at zero, or SimpleRMSNorm, without a weight.
#pragma once

#include <string>

#include "configs/schema/config.pb.h"
#include "layers/layer.h"

namespace eyrie {

class Norm {
 public:
  // Of the kind, width and epsilon that `model` gives.
  Norm(std::string name, const config::ModelConfig& model)
      : name_(std::move(name)),
        weighted_(model.norm() == config::ModelConfig::RMS_NORM),
        width_(model.width()),
        epsilon_(model.norm_epsilon()) {}

  void Declare(Declaration& declare);
  int64_t width() const { return width_; }
  // y := norm(x); rstd [B, T, 1] is saved for backward.
  void Forward(Run& run, const Tensor& x, const Tensor& y, const Tensor& rstd) const;
  // dx := dresidual + gradient through the norm; dx may be dresidual. `dresidual` may be absent.
  void Backward(Run& run, const Tensor& x, const Tensor& rstd, const Tensor& dy,
                const Tensor& dresidual, const Tensor& dx) const;

 private:
  // An absent tensor for a norm without a weight.
  Tensor Weight(const Run& run) const { return weighted_ ? run.params.value(weight_) : Tensor{}; }

  std::string name_;
  bool weighted_;
  int64_t width_;
  double epsilon_;
  ParamId weight_ = -1;
};

}  // namespace eyrie
