// TransNormerLLM's gated linear attention (Qin et al., arXiv:2307.14995, section 3):
//
//   q = f(x W_q^T)   k = f(x W_k^T)   v = x W_v^T   u = x W_u^T
//   o = lightning_attention(q, k, v)   out = (u * norm(o)) W_o^T
//
// where f is SiLU, in the first block with LRPE, which doubles the width of queries and keys, and
// norm is SimpleRMSNorm over all heads together. The decay of head h in block i of N is that of the
// released models, exp(-s_h (1 - i / (N - 1) + 1e-5)) with the slopes s_h of ALiBi
// (arXiv:2108.12409), and is not trained.
//
// Heads are cut over the tensor axis; the squares of a token's outputs, which the norm needs the
// sum of, are added up over it. State: "s" [H, dk, dv]; over the sequence axis an associative
// carry.
#pragma once

#include <vector>

#include "layers/linear.h"
#include "layers/registry.h"

namespace eyrie {

class LightningAttentionMixer final : public Mixer {
 public:
  LightningAttentionMixer(const config::ModelConfig& model, int64_t block);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  double ExtraFlops(int64_t before, int64_t tokens) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  // A tensor [B, T, width] as [B, T, H, width / H].
  Tensor Heads(const Tensor& tensor) const;
  // [B, H, dk, dv]
  Shape StateShape(const Run& run) const;
  // The decay rates of this rank's heads, [H], beside the run's parameters.
  Tensor Rates(const Run& run);
  // Absent where queries and keys are not rotated.
  Tensor Theta(const Run& run) const;
  // [B, T, H, dk] := f(projected). Scratch.
  Tensor Features(Run& run, const Tensor& projected) const;
  // projected [B, T, H dh] := the gradient of what Features was given; adds that of theta.
  void FeaturesBackward(Run& run, const Tensor& projected, const Tensor& dfeatures,
                        const Tensor& dprojected) const;
  // The state that enters the chunk: from the ranks before, or carried. Absent: zeros.
  Tensor InitialState(const Run& run, const Stash& stash, const Carry& carry) const;

  int64_t global_heads_, head_width_;
  double epsilon_;
  bool rotates_;
  std::vector<double> rates_;  // of all heads
  // Made by the first pass and then kept: a recorded pass must not copy from the host.
  OwnedTensor local_rates_;
  int64_t heads_ = 0;  // local
  Linear q_, k_, v_, gate_, out_;
  ParamId theta_ = -1;
  SlotId s0_ = -1;       // what came from the rank of the chunk before
  SlotId squares_ = -1;  // summed over tensor ranks
  SlotId q_out_ = -1, k_out_ = -1, v_out_ = -1, gate_out_ = -1, o_ = -1, product_ = -1;
};

// ALiBi's slopes of `heads` heads: 2^(-8 (h + 1) / heads) where that is a power of two. Otherwise
// those of the largest power of two below it, then every other one of twice that many heads.
std::vector<double> AlibiSlopes(int64_t heads);

MixerEntry LightningAttentionMixerEntry();

}  // namespace eyrie
