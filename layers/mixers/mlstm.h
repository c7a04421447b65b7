// xLSTM's mLSTM block (Beck et al., arXiv:2405.04517, figure 11):
//
//   a = x W_a^T   z = x W_z^T   s = silu(conv4(a))   q = B_q s   k = B_k s   v = B_v a
//   i, f = W_i [q; k; v] + b_i, W_f [q; k; v] + b_f      h = norm(mlstm(q, k, v, i, f))
//   out = ((h + skip * s) * silu(z)) W_o^T
//
// E inner channels in H heads, cut over the tensor axis by heads; the B are block-diagonal in
// blocks of 4. State: the convolution's last inputs "conv" [3, E] and the cell's
// (layers/mlstm_cell.h). The gates read all heads, so beside the sum that completes the output,
// tensor ranks add up 2 H numbers a token forward, and gather as many backward.
#pragma once

#include <initializer_list>

#include "layers/causal_convolution.h"
#include "layers/linear.h"
#include "layers/mlstm_cell.h"
#include "layers/registry.h"

namespace eyrie {

class MlstmMixer final : public Mixer {
 public:
  explicit MlstmMixer(const config::ModelConfig& model);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  double ExtraFlops(int64_t before, int64_t tokens) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  // q, k and v, of what the convolution read and gave, and, unless absent, this rank's share of the
  // gates [B, T, 2 H] of all heads; input gates first.
  void MapInputs(Run& run, Stash& stash, const Tensor& gates) const;
  // What is added to the cell's outputs and what gates them.
  MlstmCell::Outward Outward(const Stash& stash) const;
  // What a part of the gates' weight multiplies.
  enum GatePart { kQ, kK, kV };
  // That part of it, or of its gradient: [2 H, width].
  Tensor PartOf(const Tensor& gates_w, GatePart part) const;
  // A map, what its outputs are to the gates, and their gradient without the gates' share.
  struct MapGradient {
    ParamId map;
    GatePart part;
    Tensor dy;
  };
  // dx += what the maps of x make of the gradients of their outputs; adds the gradients of their
  // weights and of the gates'.
  void MapsBackward(Run& run, const Tensor& x, const Tensor& dgates,
                    std::initializer_list<MapGradient> maps, const Tensor& dx) const;
  MlstmCell::Inputs CellInputs(const Run& run, const Stash& stash) const;

  int64_t global_width_, global_heads_;
  double map_std_;
  int64_t width_ = 0;  // local
  Linear up_, z_;
  CausalConvolution conv_;
  MlstmCell cell_;
  Linear down_;
  ParamId q_ = -1, k_ = -1, v_ = -1, gates_w_ = -1;
  SlotId gates_out_ = -1;  // what tensor ranks added up, of this rank's heads
  SlotId s_ = -1, q_out_ = -1, k_out_ = -1, v_out_ = -1, z_out_ = -1, product_ = -1;
};

MixerEntry MlstmMixerEntry();

// The cell's gates as a configuration names them.
MlstmGate GateKind(config::MlstmConfig::Gate gate);
// Reports what both blocks cannot be built from on `tensor` ranks.
void ValidateMlstm(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors);
// Of `width` channels of all heads, which `field` gives.
void ValidateMlstmOnGpu(const config::ModelConfig& model, const char* field, int64_t width,
                        DType activations, ConfigErrors& errors);

}  // namespace eyrie
