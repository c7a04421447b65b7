// The embedding table and the head's, which may be the same one, cut over the tensor axis by
// vocabulary: look-up at one end of the model, head and loss at the other.
#pragma once

#include "layers/layer.h"

namespace eyrie {

struct Loss {
  double sum = 0.0;   // of the negative log-likelihoods, in nats
  int64_t valid = 0;  // labels that counted
};
// From where HeadLoss adds it up; waits for the device.
Loss ReadLoss(const Tensor& loss);

class Embedding {
 public:
  struct Options {
    int64_t vocab_size = 0, width = 0;
    double variance = 0.0;  // of the tables' initial elements
    bool tied = true;       // one table for both
    double scale = 1.0;     // multiplies looked-up rows
    double soft_cap = 0.0;  // of the logits; 0: none
  };

  explicit Embedding(Options options) : options_(options) {}

  // The embedding's table; then, last of all parameters, the head's, if it has its own.
  void Declare(Declaration& declare);
  void DeclareHead(Declaration& declare);

  // y [B, T, D] := the tokens' rows, complete on every tensor rank.
  void LookUp(Run& run, const Tensor& tokens, const Tensor& y) const;
  void LookUpBackward(Run& run, const Tensor& tokens, const Tensor& dy) const;

  // Adds the loss of predicting `labels` [B, T] from x [B, T, D] (a negative label does not count)
  // to `loss`, [2] float64: the sum, and the labels that counted. With `dx` (training) also runs
  // backward at once, with the loss scaled by `scale`: dx := gradient of x, and the head's
  // gradient is added to. `predicted` [B, T] int32, where wanted, receives the id of each token's
  // largest logit (RowArgmax), on every tensor rank. Works through the tokens piece by piece, so
  // that logits exist for one piece at a time.
  void HeadLoss(Run& run, const Tensor& x, const Tensor& labels, double scale, const Tensor& loss,
                const Tensor& dx, const Tensor& predicted) const;

  // logits [N, vocab_size] of x [N, D], in full precision, whole on every tensor rank, cap applied.
  void Logits(Run& run, const Tensor& x, const Tensor& logits) const;

 private:
  int64_t FirstRow(Run& run) const { return run.mesh.tensor().rank() * local_vocab_; }
  ParamId DeclareTable(Declaration& declare, const char* name) const;
  // u [N, local vocab] := x head^T
  void PartialLogits(Run& run, const Tensor& x, const Tensor& u) const;

  Options options_;
  int64_t local_vocab_ = 0;
  ParamId table_ = -1, head_ = -1;
};

}  // namespace eyrie
