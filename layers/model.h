// A language model: embedding, residual branches taken cyclically from the pattern, final norm,
// head.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.pb.h"
#include "layers/branch.h"
#include "layers/embedding.h"

namespace eyrie {

// One State a branch: all that a model carries from one chunk of its sequences to the next.
using ModelState = std::vector<State>;

class Model {
 public:
  // `config` has passed ValidateModel. `recompute`: what training drops of each branch, and
  // computes once more in backward.
  Model(const config::ModelConfig& config, int tensor_size,
        Recompute recompute = Recompute::kNothing);

  const ParamTable& params() const { return params_; }
  // Zero states: the sequences' start. `capacity`: the longest sequence that will be carried. With
  // an arena they live there, otherwise in memory of their own.
  ModelState MakeState(const ParamStore& params, int64_t batch, int64_t capacity,
                       Arena* arena = nullptr) const;

  struct Batch {
    Tensor tokens;       // [B, T] int32
    Tensor labels;       // [B, T] int32, the tokens to predict; negative: does not count
    double scale = 1.0;  // of the loss: one over the valid labels of the whole global batch
    // [2] float64, added to: the sum of the negative log-likelihoods, in nats, and the number of
    // labels that counted (ReadLoss).
    Tensor loss;
  };
  // What Forward leaves for Backward, in the arena of the Run.
  struct Activations {
    std::vector<Tensor> inputs;  // of each branch, [B, T, D]
    std::vector<Stash> stashes;  // of each branch; only what outlives recomputation
    Tensor norm;                 // what the final norm saves
    Tensor gradient;             // [B, T, D] of the final norm's input
  };

  // Training: the loss of a chunk of sequences, from the state before it (null: the start), giving
  // the state after it (null: not wanted). Also takes the head's backward step.
  void Forward(Run& run, const Batch& batch, const ModelState* before, ModelState* after,
               Activations& saved) const;
  // Adds the parameters' gradients, and tells the store of each as it is done with it
  // (ParamStore::GradsReady). `after`, the gradient of the state after the chunk (null: no
  // later chunk), gives `before`, that of the state before it (null: not wanted).
  void Backward(Run& run, const Batch& batch, Activations& saved, const ModelState* before,
                const ModelState* grad_after, ModelState* grad_before) const;

  // The sum of Mixer::ExtraFlops over all branches.
  double ExtraFlops(int64_t before, int64_t tokens) const;

  // The state after a chunk from that before it, and nothing else.
  void Advance(Run& run, const Tensor& tokens, const ModelState& before, ModelState& after) const;
  // The loss alone, of a chunk of sequences as for Forward. `predicted` [B, T] int32, where wanted,
  // receives the id of each token's largest logit.
  void Evaluate(Run& run, const Batch& batch, const ModelState* before = nullptr,
                ModelState* after = nullptr, const Tensor& predicted = {}) const;
  // logits [B, T, vocab] for every token, or [B, 1, vocab] for the last one.
  void Logits(Run& run, const Tensor& tokens, const ModelState* before, ModelState* after,
              const Tensor& logits) const;

 private:
  // Embedding and branches without saving: returns the normed output [B, T, D], in the arena.
  Tensor Infer(Run& run, const Tensor& tokens, const ModelState* before, ModelState* after) const;

  int64_t width_;
  Recompute recompute_;
  ParamTable params_;
  Embedding embedding_;
  std::vector<Branch> branches_;
  std::vector<std::string> names_;  // of the branches: "block 3 (recurrent)"
  // The first parameter of each branch, and of what follows the last one.
  std::vector<ParamId> first_params_;
  Norm norm_f_;
};

}  // namespace eyrie
