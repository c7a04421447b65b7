// RMSNorm with weight 1 + w, w replicated and starting at zero.
#pragma once

#include <string>

#include "layers/layer.h"

namespace eyrie {

class Norm {
 public:
  Norm(std::string name, int64_t width, double epsilon)
      : name_(std::move(name)), width_(width), epsilon_(epsilon) {}

  void Declare(Declaration& declare);
  int64_t width() const { return width_; }
  // y := norm(x); rstd [B, T, 1] is saved for backward.
  void Forward(Run& run, const Tensor& x, const Tensor& y, const Tensor& rstd) const;
  // dx := dresidual + gradient through the norm; dx may be dresidual. `dresidual` may be absent.
  void Backward(Run& run, const Tensor& x, const Tensor& rstd, const Tensor& dy,
                const Tensor& dresidual, const Tensor& dx) const;

 private:
  std::string name_;
  int64_t width_;
  double epsilon_;
  ParamId weight_ = -1;
};

}  // namespace eyrie
