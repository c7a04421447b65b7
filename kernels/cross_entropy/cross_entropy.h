// Cross-entropy over a vocabulary sharded by columns, in the steps between which the tensor ranks
// reduce three numbers per token (Shoeybi et al., arXiv:1909.08053, section 3):
//
//   1. SoftmaxPartials   z = cap tanh(u / cap) in place; of this rank's columns each row's maximum,
//                        sum of exp(z - max), and z at the label if it is here -> all-reduce max
//   2. RescalePartials   the sums, for the maxima of all ranks                 -> all-reduce sum
//   3. CrossEntropyGrad  du = scale (softmax(z) - onehot) (1 - (z/cap)^2)
//
// and loss = log(sum) + max - z_label per token, by CrossEntropyLoss. A negative label is ignored:
// no loss, no gradient. Evaluation also finds the largest logit's id, by RowArgmax after step 1 and
// one more all-reduce max. A rank on its own leaves step 2 out. The logits are read once a step:
// the sum follows a maximum that may still rise (Milakov and Gimelshein, "Online normalizer
// calculation for softmax", arXiv:1805.02867). N tokens; this rank holds columns [first, first +
// V). Everything has full precision (float32, on the CPU also float64) but dlogits, which has the
// activations' type.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// Step 1's cap alone: logits [N, V] in: u, out: z.
void SoftCap(const Tensor& logits, double soft_cap);

struct SoftmaxPartialsArgs {
  Tensor logits;          // [N, V] in: u, out: z
  double soft_cap = 0.0;  // 0: no cap
  Tensor labels;          // [N] int32, global ids
  int64_t first = 0;
  Tensor row_max;   // [N] out
  Tensor partials;  // [2, N] out: sums of exponentials, then z at the label or 0
};
void SoftmaxPartials(const SoftmaxPartialsArgs& args);

// partials [2, N], whose sums are for the maxima own_max [N], become those for row_max [N].
void RescalePartials(const Tensor& own_max, const Tensor& row_max, const Tensor& partials);

struct RowArgmaxArgs {
  Tensor logits;  // [N, V] z
  int64_t first = 0;
  Tensor row_max;    // [N] global maxima
  Tensor predicted;  // [N] int32 out: the largest id here whose z is the row's maximum; -1: none
};
// The maximum over ranks of `predicted` is the id of each row's largest logit; of several that are
// equal, the largest id, however the vocabulary is cut.
void RowArgmax(const RowArgmaxArgs& args);

// loss += {the sum over tokens of the loss, the number of valid labels}: two float64 elements on
// the device of the others, added up in an order that depends on N alone. Nothing waits for them.
void CrossEntropyLoss(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                      const Tensor& loss);

struct CrossEntropyGradArgs {
  Tensor logits;  // [N, V] z
  Tensor labels, row_max;
  Tensor partials;  // [2, N] global sums
  Tensor dlogits;   // [N, V] du, out; may be the same memory as logits where the types are the same
  int64_t first = 0;
  double soft_cap = 0.0;
  double scale = 1.0;  // 1 / valid targets of the global batch
};
void CrossEntropyGrad(const CrossEntropyGradArgs& args);

}  // namespace eyrie
