// RG-LRU, the Real-Gated Linear Recurrent Unit: sigmoids, decay, normaliser and scan in one pass.
// De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language
// Models", arXiv:2402.19427, equations 1-4; computed in log space:
//
//   i = sigmoid(zi)   r = sigmoid(zr)   l = -8 r softplus(lambda)   a = exp(l)
//   m = sqrt(1 - exp(2 l))              at a document start (position 0): a := 0, m := 1
//   h_t = a_t h_{t-1} + m_t i_t u_t     h_{-1} = h0
//
// B sequences, T tokens, R channels. All tensors share one floating-point type (float32 or
// float64).
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct RgLruForwardArgs {
  Tensor u;          // [B, T, R] input (the convolution's output)
  Tensor zi, zr;     // [B, T, R] pre-activations of the input and recurrence gates, biases included
  Tensor lambda;     // [R]
  Tensor positions;  // [B, T] int32, position of each token inside its document
  Tensor h0;         // [B, R] carried state, or absent for zeros
  Tensor h;          // [B, T, R] out
  Tensor h_last;     // [B, R] out, the state after the last token; optional
};
void RgLruForward(const RgLruForwardArgs& args);

// Gradients of the above. The square root's derivative is bounded by 1000, as in the reference.
struct RgLruBackwardArgs {
  Tensor u, zi, zr, lambda, positions, h0;  // as in the forward pass
  Tensor h;                                 // [B, T, R] the forward pass's output
  Tensor dh;                                // [B, T, R]
  Tensor dh_last;       // [B, R] gradient of the state handed to the next chunk, or absent
  Tensor du, dzi, dzr;  // [B, T, R] out, overwritten; du holds only the recurrence's own share
  Tensor dh0;           // [B, R] out, overwritten; optional
  Tensor dlambda;       // [R] out, added to
};
void RgLruBackward(const RgLruBackwardArgs& args);

// The recurrence over a whole chunk is an affine map of the state before it, h_last = decay * h0 +
// increment, channel by channel: what ranks that hold other chunks of the sequence exchange.
struct RgLruSummaryArgs {
  Tensor u, zi, zr, lambda, positions;  // as in the forward pass
  Tensor decay, increment;              // [B, R] out
};
void RgLruSummary(const RgLruSummaryArgs& args);

// The same of the backward pass: dh0 = decay * dh_last + increment.
struct RgLruGradSummaryArgs {
  Tensor zr, lambda, positions, dh;  // as in the backward pass
  Tensor decay, increment;           // [B, R] out
};
void RgLruGradSummary(const RgLruGradSummaryArgs& args);

}  // namespace eyrie
