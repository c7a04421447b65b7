// Gated MLPs (Shazeer, arXiv:2002.05202): y = (act(x W_g^T + b_g) * (x W_u^T + b_u)) W_d^T + b_d,
// hidden width F cut over the tensor axis. Channel mixers: no state.
//
//   geglu      act is GELU, in its form with tanh
//   geglu_erf  act is GELU itself, no biases: xLSTM's behind an sLSTM (Beck et al.,
//              arXiv:2405.04517, figure 10)
//   swiglu     act is SiLU, no biases: xLSTM 7B's (Beck et al., arXiv:2503.13427)
//   sglu       no act and no biases: TransNormerLLM's (Qin et al., arXiv:2307.14995, equation 13)
#pragma once

#include "kernels/glu/glu.h"
#include "layers/linear.h"
#include "layers/registry.h"

namespace eyrie {

class GluMixer final : public Mixer {
 public:
  struct Options {
    Activation activation;
    bool bias;
    double in_std, out_std;  // of the initial weights
  };
  GluMixer(const config::ModelConfig& model, const Options& options);

  void Declare(Declaration& declare) override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  Activation activation_;
  Linear gate_, up_, down_;
  SlotId gate_out_ = -1, up_out_ = -1, product_ = -1;
};

MixerEntry GegluMixerEntry();
MixerEntry GegluErfMixerEntry();
MixerEntry SwigluMixerEntry();
MixerEntry SgluMixerEntry();

}  // namespace eyrie
