// A causal depthwise convolution over time in front of a recurrence (kernels/causal_conv1d), with
// what crosses time: its last inputs are the mixer's state "conv" [3, C], and a halo over the
// sequence axis. Its C channels are cut over the tensor axis.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "layers/layer.h"
#include "parallel/sequence_exchange.h"

namespace eyrie {

class CausalConvolution {
 public:
  static constexpr int64_t kTaps = 4;
  // The rows before a chunk that it looks back to, and so the fewest that a rank may hold.
  static constexpr int64_t kHalo = kTaps - 1;

  struct Options {
    std::string name;   // name.w [4, C], name.b [C]
    int64_t width = 0;  // C, global
    InitFn weight_init, bias_init;
    bool silu = false;  // the output goes through x sigmoid(x)
  };

  explicit CausalConvolution(Options options) : options_(std::move(options)) {}

  void Declare(Declaration& declare);
  // To be called first: its state is the mixer's slot 0.
  void DeclareState(StateTable& table) const;

  // What it reads, [B, T, local C].
  const Tensor& inputs(const Stash& stash) const { return stash[inputs_]; }

  // Computes inputs [B, N, local C] from N rows of the mixer's own input [B, N, D].
  using Project = std::function<void(const Tensor& x, const Tensor& inputs)>;
  // out [B, T, local C] := the convolution of what `project` makes of x. The last rows are
  // projected first, for the next rank: they travel under the projection of all. The state after
  // the last rank's chunk is on its way to all ranks until the event has been waited for.
  [[nodiscard]] Event Forward(Run& run, const Tensor& x, const Project& project, const Tensor& out,
                              Stash& stash, const Carry& carry) const;

  // out again, from what Forward left in the stash.
  void Refill(Run& run, const Tensor& out, Stash& stash, const Carry& carry) const;

  // Gradients on their way between ranks.
  class Returning {
   public:
    // Completes the gradients of the inputs and of the state.
    void Wait();

   private:
    friend class CausalConvolution;
    std::optional<HaloGradExchange> halo_;
    Event state_;
  };
  // dinputs := the gradient of the inputs, complete once the result has been waited for; adds the
  // gradients of the parameters. Scratch is the caller's to give back, after the wait.
  // dinputs_sum [local C], optional: adds the sum of dinputs' rows, for the bias of the projection
  // that computes the inputs. Of a row that other ranks have parts of, each rank adds its own part,
  // so that only the sum over the sequence axis is a gradient.
  [[nodiscard]] Returning Backward(Run& run, const Tensor& dout, const Tensor& dinputs,
                                   Stash& stash, const Carry& carry, const CarryGrad& carry_grad,
                                   const Tensor& dinputs_sum = {}) const;

 private:
  static constexpr SlotId kState = 0;

  void Convolve(Run& run, const Stash& stash, const Carry& carry, const Tensor& y,
                const Tensor& x_last) const;
  // The inputs before the chunk: from the ranks before, or carried. Absent: zeros.
  Tensor Before(const Run& run, const Stash& stash, const Carry& carry) const;

  Options options_;
  int64_t width_ = 0;  // local
  ParamId weight_ = -1, bias_ = -1;
  SlotId halo_ = -1, inputs_ = -1;
};

}  // namespace eyrie
