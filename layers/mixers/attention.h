// Multi-query attention with rotary positions, global or local (De et al., arXiv:2402.19427,
// section 2.3): H query heads of width dh cut over the tensor axis; every tensor rank computes the
// one key and value head for itself. State: the last keys (rotated) and values the next tokens may
// see, "k" and "v" [W, dh], newest last; over the sequence axis they are a halo.
#pragma once

#include "layers/linear.h"
#include "layers/registry.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {

class AttentionMixer final : public Mixer {
 public:
  // window 0: global.
  AttentionMixer(const config::ModelConfig& model, int64_t window);

  void Declare(Declaration& declare) override;
  void DeclareState(StateTable& table) const override;
  double ExtraFlops(int64_t before, int64_t tokens) const override;
  void Forward(Run& run, const Tensor& x, const BranchOutput& out, Stash& stash,
               const Carry& carry) override;
  void Backward(Run& run, const Tensor& x, const Tensor& dy, const Tensor& dx, Stash& stash,
                const Carry& carry, const CarryGrad& carry_grad) override;

 private:
  void Rotate(Run& run, const Tensor& heads, int64_t count, bool inverse) const;

  // The rows before this rank's chunk: the last of the state's, then the halo. Absent: none.
  Tensor Past(Run& run, const Tensor& before, const Tensor& halo) const;
  // The last rows of `past`, as many as the halo has. Absent: none.
  Tensor HaloOf(Run& run, const Tensor& past, const Tensor& halo) const;
  // Adds to `dnow` what comes from the state after, and starts summing the gradient of the state
  // before: what each rank's queries leave in `dpast`, and what goes past the chunk.
  Event StateGrad(Run& run, const Tensor& dpast, const Tensor& halo, const CarryGrad& carry_grad,
                  SlotId slot, const Tensor& dnow) const;

  // Rows before a chunk that its tokens may see.
  int64_t Reach() const { return window_ == 0 ? kAllRows : window_; }

  int64_t window_, head_width_;
  double rotary_base_;
  int64_t heads_ = 0;  // local
  Linear q_, k_, v_, out_;
  SlotId halo_k_ = -1, halo_v_ = -1;  // what came from the ranks of earlier chunks
  SlotId q_out_ = -1, k_out_ = -1, v_out_ = -1, o_ = -1, lse_ = -1;
};

MixerEntry GlobalAttentionMixerEntry();
MixerEntry LocalAttentionMixerEntry();

}  // namespace eyrie
