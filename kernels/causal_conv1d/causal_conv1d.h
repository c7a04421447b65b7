// Causal depthwise convolution over time with bias, that never looks across a document's start:
//
//   y[t] = bias + sum_{s < K, s <= positions[t]} weight[K-1-s] * x[t-s]
//
// where x[-1], x[-2], ... are the last rows of the carried state. B sequences, T tokens (T may be
// shorter than K-1), C channels, K taps (1 to 8). With silu, y is z sigmoid(z) of that sum z, which
// the backward pass computes again. dweight, dbias and dx_sum have full precision, the others
// the activations' type: float32, on the CPU also float64, on a GPU also bfloat16.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct CausalConv1dForwardArgs {
  Tensor x;          // [B, T, C]
  Tensor weight;     // [K, C], row K-1 multiplies the current token
  Tensor bias;       // [C]
  Tensor positions;  // [B, T] int32
  Tensor x0;         // [B, K-1, C] the inputs before this chunk, oldest first; absent: zeros
  Tensor y;          // [B, T, C] out
  Tensor x_last;     // [B, K-1, C] out, the last K-1 inputs of [x0; x]; optional
  bool silu = false;
};
void CausalConv1dForward(const CausalConv1dForwardArgs& args);

struct CausalConv1dBackwardArgs {
  Tensor x, weight, positions, x0;  // as in the forward pass
  Tensor dy;                        // [B, T, C]
  Tensor dx_last;                   // [B, K-1, C] gradient of x_last, or absent
  Tensor dx;                        // [B, T, C] out, overwritten
  Tensor dx0;                       // [B, K-1, C] out, overwritten; optional
  Tensor dweight;                   // [K, C] out, added to
  Tensor dbias;                     // [C] out, added to
  // [C] out, added to, optional: the sum of dx over all tokens, before it is rounded. Where x comes
  // from a projection, the gradient of the projection's bias.
  Tensor dx_sum;
  Tensor workspace;   // float32 scratch of as many elements as below; absent where that is 0
  bool silu = false;  // as in the forward pass
  Tensor bias;        // likewise, with silu
};
void CausalConv1dBackward(const CausalConv1dBackwardArgs& args);
int64_t CausalConv1dBackwardWorkspace(const Tensor& x, int64_t taps);

}  // namespace eyrie
