// Griffin's recurrent block (De et al., arXiv:2402.19427, section 2.4):
//
//   g = gelu(x W_y^T + b_y)     u = conv4(x W_x^T + b_x)     out = (rg_lru(u) * g) W_o^T + b_o
//
// R channels, whose gates are block-diagonal in G blocks, cut over the tensor axis by blocks.
// State: the convolution's last inputs "conv" [3, R] and the recurrence's "h" [1, R]. Over the
// sequence axis the first is a halo, the second an associative carry.
#pragma once

#include "layers/block_linear.h"
#include "layers/causal_convolution.h"
#include "layers/linear.h"
#include "layers/registry.h"

namespace eyrie {

class RecurrentMixer final : public Mixer {
 public:
  explicit RecurrentMixer(const config::ModelConfig& model);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  // What the gate branch lets through of h.
  void Multiply(const Stash& stash) const;

  // The state that enters the chunk: from the ranks before, or carried. Absent: zeros.
  Tensor InitialState(const Run& run, const Stash& stash, const Carry& carry) const;

  int64_t global_width_;
  int64_t width_ = 0;  // local
  Linear in_y_, in_x_;
  CausalConvolution conv_;
  BlockLinear gate_i_, gate_r_;
  Linear out_;
  ParamId lambda_ = -1;
  SlotId h0_ = -1;  // what came from the rank of the chunk before
  SlotId gate_ = -1, u_ = -1, zi_ = -1, zr_ = -1, h_ = -1, product_ = -1;
};

MixerEntry RecurrentMixerEntry();

}  // namespace eyrie
