// GeGLU (Shazeer, arXiv:2002.05202): y = (gelu(x W_g^T + b_g) * (x W_u^T + b_u)) W_d^T + b_d,
// hidden width F cut over the tensor axis. A channel mixer: no state.
#pragma once

#include "layers/linear.h"
#include "layers/registry.h"

namespace eyrie {

class GegluMixer final : public Mixer {
 public:
  explicit GegluMixer(const config::ModelConfig& model);

  void Declare(Declaration& declare) override;
  void Forward(Run& run, const Tensor& x, const Tensor& y, Stash& stash,
               const Carry& carry) override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  Linear gate_, up_, down_;
  SlotId gate_out_ = -1, up_out_ = -1, product_ = -1;
};

MixerEntry GegluMixerEntry();

}  // namespace eyrie
