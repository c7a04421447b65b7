// Mamba's block (Gu and Dao, arXiv:2312.00752, section 3.4):
//
//   [x; z] = u W_in^T      v = silu(conv4(x))      [low; B; C] = v W_xp^T
//   out = selective_scan(v, low W_dt^T, B, C, z) W_out^T      (kernels/selective_scan)
//
// E inner channels with N states each, cut over the tensor axis; low has rank R. State: the
// convolution's last inputs "conv" [3, E] and the recurrence's "h" [E, N]. Over the sequence axis
// the first is a halo, the second an associative carry. B and C are common to all channels, so
// beside the sum that completes the output, tensor ranks add up [B, T, R + 2N] forward and again
// backward: for Mamba 2.8B, 192 numbers a token where the output has 2560.
//
// Without model.mamba.input_dependent, low W_dt^T is zero, so that the step sizes are those of
// their bias alone, and B and C are a parameter. Tensor ranks then add up nothing but the output.
#pragma once

#include "layers/causal_convolution.h"
#include "layers/linear.h"
#include "layers/registry.h"

namespace eyrie {

class MambaMixer final : public Mixer {
 public:
  explicit MambaMixer(const config::ModelConfig& model);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Refill(Run& run, const Tensor& x, Stash& stash, const Carry& carry) const override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  enum Half { kX, kZ };  // the maps of in_

  // low, B and C of each token, or B and C alone where they are constants, in the arena.
  Tensor Projected(Run& run, const Stash& stash) const;
  // dt [B, T, E] := low W_dt^T, or zeros.
  void Dt(Run& run, const Tensor& projected, const Tensor& dt) const;

  // The state that enters the chunk: from the ranks before, or carried. Absent: zeros.
  Tensor InitialState(const Run& run, const Stash& stash, const Carry& carry) const;
  // A slot of a carried state as the kernels take it, [B, E, N].
  Tensor HiddenState(const Run& run, const State* state) const;

  int64_t global_width_, states_, rank_;
  bool input_dependent_;
  int64_t width_ = 0;  // local
  Linear in_;
  CausalConvolution conv_;
  Linear project_, dt_, out_;
  ParamId dt_b_ = -1, a_log_ = -1, skip_ = -1;
  ParamId bc_ = -1;        // the constants, where nothing depends on the input
  SlotId h0_ = -1;         // what came from the rank of the chunk before
  SlotId projected_ = -1;  // what tensor ranks added up
  SlotId v_ = -1, z_ = -1, product_ = -1;
};

MixerEntry MambaMixerEntry();

}  // namespace eyrie
