// RG-LRU, the Real-Gated Linear Recurrent Unit: sigmoids, decay, normaliser and scan in one pass.
// De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language
// Models", arXiv:2402.19427, equations 1-4; computed in log space:
//
//   i = sigmoid(zi)   r = sigmoid(zr)   l = -8 r softplus(lambda)   a = exp(l)
//   m = sqrt(1 - exp(2 l))              at a document start (position 0): a := 0, m := 1
//   h_t = a_t h_{t-1} + m_t i_t u_t     h_{-1} = h0
//
// B sequences, T tokens, R channels. lambda and its gradient, sums, states and what a summary holds
// have full precision, the others the activations' type: float32, on the CPU also float64, on a GPU
// also bfloat16.
//
// A workspace is scratch of float32: as many elements as the function beside it says for that u (or
// dh); where that is 0, it may be absent. Its contents mean nothing before and after a call.
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
  Tensor workspace;
};
void RgLruForward(const RgLruForwardArgs& args);
int64_t RgLruForwardWorkspace(const Tensor& u);

// Gradients of the above. The square root's derivative is bounded by 1000, as in the reference.
struct RgLruBackwardArgs {
  Tensor u, zi, zr, lambda, positions, h0;  // as in the forward pass
  Tensor h;                                 // [B, T, R] the forward pass's output
  Tensor dh;                                // [B, T, R]
  Tensor dh_last;       // [B, R] gradient of the state handed to the next chunk, or absent
  Tensor du, dzi, dzr;  // [B, T, R] out, overwritten; du holds only the recurrence's own share
  Tensor dh0;           // [B, R] out, overwritten; optional
  Tensor dlambda;       // [R] out, added to
  // [R] out, added to, optional: the sums of dzi and dzr over all tokens, before they are rounded.
  // Where the pre-activations come from projections, the gradients of the projections' biases.
  Tensor dzi_sum, dzr_sum;
  Tensor workspace;
};
void RgLruBackward(const RgLruBackwardArgs& args);
int64_t RgLruBackwardWorkspace(const Tensor& u);

// The recurrence over a whole chunk is an affine map of the state before it, h_last = decay * h0 +
// increment, channel by channel: what ranks that hold other chunks of the sequence exchange.
struct RgLruSummaryArgs {
  Tensor u, zi, zr, lambda, positions;  // as in the forward pass
  Tensor decay, increment;              // [B, R] out
  Tensor workspace;
};
void RgLruSummary(const RgLruSummaryArgs& args);
// Of both summaries, for u or dh.
int64_t RgLruSummaryWorkspace(const Tensor& u);

// The same of the backward pass: dh0 = decay * dh_last + increment.
struct RgLruGradSummaryArgs {
  Tensor zr, lambda, positions, dh;  // as in the backward pass
  Tensor decay, increment;           // [B, R] out
  Tensor workspace;                  // RgLruSummaryWorkspace
};
void RgLruGradSummary(const RgLruGradSummaryArgs& args);

}  // namespace eyrie
