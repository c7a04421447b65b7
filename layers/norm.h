// The norm before a branch and before the head: RMSNorm or LayerNorm with weight 1 + w, w
// replicated and starting at zero, or SimpleRMSNorm, without a weight.
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
        kind_(model.norm()),
        width_(model.width()),
        epsilon_(model.norm_epsilon()) {}

  void Declare(Declaration& declare);
  int64_t width() const { return width_; }
  // How many numbers a token it saves for backward, in full precision.
  int64_t statistics() const { return kind_ == config::ModelConfig::LAYER_NORM ? 2 : 1; }
  // y := norm(x); `saved` [B, T, statistics()].
  void Forward(Run& run, const Tensor& x, const Tensor& y, const Tensor& saved) const;
  // dx := dresidual + gradient through the norm; dx may be dresidual. `dresidual` may be absent.
  void Backward(Run& run, const Tensor& x, const Tensor& saved, const Tensor& dy,
                const Tensor& dresidual, const Tensor& dx) const;

 private:
  bool weighted() const { return kind_ != config::ModelConfig::SIMPLE_RMS_NORM; }
  // An absent tensor for a norm without a weight.
  Tensor Weight(const Run& run) const { return weighted() ? run.params.value(weight_) : Tensor{}; }

  std::string name_;
  config::ModelConfig::Norm kind_;
  int64_t width_;
  double epsilon_;
  ParamId weight_ = -1;
};

}  // namespace eyrie
