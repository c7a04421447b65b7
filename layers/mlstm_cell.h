// The heart of both mLSTM blocks: the gates' biases and caps (kernels/mlstm/mlstm_gates.h), the
// cell (kernels/mlstm/mlstm.h), and a LayerNorm of each head under an output gate
// (kernels/gated_norm/gated_layer_norm.h). H heads, cut over the tensor axis.
//
// State: "c" [H dk, dv] and "n" [H, dk], times exp of "m" [H]. Over the sequence axis it is an
// associative carry: what the chunk does to it travels between the two steps of each pass, in which
// the mixer computes what needs no state.
#pragma once

#include <optional>
#include <string>

#include "kernels/glu/glu.h"
#include "kernels/mlstm/mlstm.h"
#include "kernels/mlstm/mlstm_gates.h"
#include "layers/layer.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {

class MlstmCell {
 public:
  struct Options {
    std::string name;   // name.gate_i.b and name.gate_f.b [H], name.norm.w [H, dv]
    int64_t heads = 0;  // global
    int64_t key_width = 0, value_width = 0;  // dk and dv, of one head
    MlstmGate input_gate, forget_gate;
    double gate_soft_cap = 0;
    double epsilon = 0;  // of the memory's normaliser
    InitFn input_bias;   // the forget gates' rise from 3 to 6
    double norm_epsilon = 0;
    Activation out_gate;     // SiLU or sigmoid
    bool skip = false;       // name.skip [H dv]: skip * s is added to the normed outputs
    SlotId first_state = 0;  // the state's slots are this one and the next two
  };

  explicit MlstmCell(Options options);

  void Declare(Declaration& declare);
  void DeclareState(StateTable& table) const;
  double ExtraFlops(int64_t tokens) const;
  // Local, known once declared.
  int64_t heads() const { return heads_; }
  int64_t keys() const { return heads_ * options_.key_width; }
  int64_t values() const { return heads_ * options_.value_width; }

  // What the mixer gives: q and k [B, T, keys()], v [B, T, values()], the gates' pre-activations
  // [2, B, T, heads()] in full precision, input gates first.
  struct Inputs {
    Tensor q, k, v, gates;
  };

  // What gates the memory's outputs, and what is added to them first where Options::skip; or the
  // gradients of both. [B, T, values()].
  struct Outward {
    Tensor gate, s;
  };

  // out [B, T, values()] := (a LayerNorm of each head of the memory's outputs, which Forward has
  // left in the stash, + skip * s) * act(gate).
  void Out(Run& run, Stash& stash, const Outward& outward, const Tensor& out) const;

  // Takes scratch that is the caller's to give back, after Finish.
  class Forward {
   public:
    // Reads k, v and the gates.
    Forward(const MlstmCell& cell, Run& run, const Inputs& inputs, Stash& stash,
            const Carry& carry);
    // Fills the stash with the memory's outputs, for Out.
    void Finish();

   private:
    const MlstmCell& cell_;
    Run& run_;
    Inputs inputs_;
    Stash& stash_;
    Carry carry_;
    Tensor log_i_, log_f_;
    std::optional<StabilisedCarryScan> scan_;
  };

  // Likewise.
  class Backward {
   public:
    // `dout` is the gradient of Out's `out`, and is overwritten; so are the `gradients`, of what
    // `outward` holds.
    Backward(const MlstmCell& cell, Run& run, const Inputs& inputs, const Outward& outward,
             const Tensor& dout, const Outward& gradients, Stash& stash, const Carry& carry,
             const CarryGrad& carry_grad);
    // Overwrites `gradients`, of what the inputs hold; the gates' are in the activations' type.
    // Adds the parameters' gradients.
    void Finish(const Inputs& gradients);

   private:
    const MlstmCell& cell_;
    Run& run_;
    Inputs inputs_;
    Stash& stash_;
    Carry carry_;
    Tensor log_i_, log_f_, dh_, h_dh_, after_m_;
    MlstmState dafter_, dbefore_;
    std::optional<CarryScan> scan_c_, scan_n_;
  };

 private:
  // One gate of a [2, B, T, H] tensor, as [B, T, H].
  Tensor GateOf(const Tensor& gates, int64_t which) const;
  // [B, T, H, channels of a head]; an absent tensor stays absent.
  Tensor Heads(const Tensor& tensor) const;
  // What each of values() has, a row for each head.
  Tensor OfHeads(const Tensor& channels) const {
    return channels.View({heads_, options_.value_width});
  }
  void Gates(Run& run, const Tensor& gates, const Tensor& log_i, const Tensor& log_f) const;
  // The slots of a carried state or gradient, absent where there is none.
  MlstmState StateOf(const Run& run, const State* state) const;
  // The state that enters the chunk: from the ranks before, or carried.
  MlstmState Before(const Run& run, const Stash& stash, const Carry& carry) const;
  MlstmState View(int64_t batch, const Tensor& c, const Tensor& n, const Tensor& m) const;

  Options options_;
  MlstmOptions kernel_;
  int64_t heads_ = 0;  // local
  ParamId bias_i_ = -1, bias_f_ = -1, norm_ = -1, skip_ = -1;
  SlotId c0_ = -1, n0_ = -1, m0_ = -1;  // what came from the ranks before
  SlotId h_ = -1, maximum_ = -1, normaliser_ = -1, statistics_ = -1, memories_ = -1;
};

}  // namespace eyrie
