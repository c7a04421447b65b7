// The mLSTM block of xLSTM 7B (Beck et al., arXiv:2503.13427, section 3):
//
//   q = x W_q^T   k = x W_k^T   v = x W_v^T   i = x W_i^T + b_i   f = x W_f^T + b_f
//   out = (sigmoid(x W_g^T) * norm(mlstm(q, k, v, i, f))) W_o^T
//
// H heads, cut over the tensor axis. State: the cell's (layers/mlstm_cell.h), an associative carry
// over the sequence axis.
#pragma once

#include "layers/linear.h"
#include "layers/mlstm_cell.h"
#include "layers/registry.h"

namespace eyrie {

class MlstmLargeMixer final : public Mixer {
 public:
  explicit MlstmLargeMixer(const config::ModelConfig& model);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  double ExtraFlops(int64_t before, int64_t tokens) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  MlstmCell::Inputs CellInputs(const Run& run, const Stash& stash) const;

  Linear q_, k_, v_, gate_i_, gate_f_, out_gate_;
  MlstmCell cell_;
  Linear out_;
  SlotId q_out_ = -1, k_out_ = -1, v_out_ = -1, gates_out_ = -1, gate_out_ = -1, product_ = -1;
};

MixerEntry MlstmLargeMixerEntry();

}  // namespace eyrie
