// Cross-entropy over a vocabulary sharded by columns, in the steps between which the tensor ranks
// reduce three numbers per token (Shoeybi et al., arXiv:1909.08053, section 3):
//
//   1. SoftCapRowMax     z = cap tanh(u / cap) in place; row maxima           -> all-reduce max
//   2. SoftmaxPartials   sum of exp(z - max), z at the label if it is here    -> all-reduce sum
//   3. CrossEntropyGrad  du = scale (softmax(z) - onehot) (1 - (z/cap)^2) in place of z
//
// and loss = log(sum) + max - z_label per token, by CrossEntropyLoss. A negative label is ignored:
// no loss, no gradient. N tokens; this rank holds columns [first, first + V). float32 or float64.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct SoftCapRowMaxArgs {
  Tensor logits;          // [N, V] in: u, out: z
  double soft_cap = 0.0;  // 0: no cap
  Tensor row_max;         // [N] out
};
void SoftCapRowMax(const SoftCapRowMaxArgs& args);

struct SoftmaxPartialsArgs {
  Tensor logits;  // [N, V] z
  Tensor labels;  // [N] int32, global ids
  int64_t first = 0;
  Tensor row_max;   // [N] global maxima
  Tensor partials;  // [2, N] out: sums of exponentials, then z at the label or 0
};
void SoftmaxPartials(const SoftmaxPartialsArgs& args);

// Sum over tokens of the loss, in float64 and in token order; adds the number of valid labels.
double CrossEntropyLoss(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                        int64_t* valid);

struct CrossEntropyGradArgs {
  Tensor logits;  // [N, V] in: z, out: du
  Tensor labels, row_max;
  Tensor partials;  // [2, N] global sums
  int64_t first = 0;
  double soft_cap = 0.0;
  double scale = 1.0;  // 1 / valid targets of the global batch
};
void CrossEntropyGrad(const CrossEntropyGradArgs& args);

}  // namespace eyrie
