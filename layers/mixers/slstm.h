// xLSTM's sLSTM block (Beck et al., arXiv:2405.04517, figure 10), without the gated MLP, which is a
// channel mixer of its own:
//
//   s = silu(conv4(x))   x_i, x_f = W_i s, W_f s   x_z, x_o = W_z x, W_o x
//   out = norm(slstm(x_i, x_f, x_z, x_o))                          (kernels/slstm)
//
// D channels in H heads, cut over the tensor axis by heads; the W are block-diagonal by heads, the
// norm is a LayerNorm of each head. There is no projection on the way out, so that tensor ranks
// gather the output, and the gradient of x. State: the convolution's last inputs "conv" [3, D] and
// the cell's "y", "c", "n" and "m" [D]. The cell cannot be summarised: over the sequence axis its
// state goes from rank to rank.
#pragma once

#include <vector>

#include "kernels/slstm/slstm.h"
#include "layers/block_linear.h"
#include "layers/causal_convolution.h"
#include "layers/registry.h"

namespace eyrie {

class SlstmMixer final : public Mixer {
 public:
  SlstmMixer(const config::ModelConfig& model, int64_t block);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  // The parts of a state, in the order of their slots.
  static constexpr int kParts = 4, kGradParts = 3;  // y, c, n and m; m has no gradient
  std::vector<Tensor> Slots(const State* state, int parts) const;
  std::vector<Tensor> NewState(Run& run, int parts) const;
  SlstmState View(const Run& run, const std::vector<Tensor>& parts) const;
  // The state that enters the chunk: from the rank before, or carried. Empty: zeros.
  std::vector<Tensor> Before(const Run& run, const Stash& stash, const Carry& carry) const;

  Tensor Heads(const Tensor& tensor) const;
  // The gates' inputs [B, T, H, 4, d], and the last two gates' place in them.
  Tensor Packed(const Tensor& tensor) const;
  Tensor LastGates(const Tensor& packed) const;

  int64_t global_width_, global_heads_, block_, depth_;
  double epsilon_;
  bool exponential_forget_;
  int64_t width_ = 0, heads_ = 0;  // local
  CausalConvolution conv_;
  BlockLinear if_, zo_;
  ParamId r_ = -1, bias_ = -1, norm_ = -1;
  SlotId before_[kParts] = {-1, -1, -1, -1};  // what came from the rank before
  SlotId s_ = -1, packed_ = -1, cell_ = -1, statistics_ = -1;
};

MixerEntry SlstmMixerEntry();

}  // namespace eyrie
