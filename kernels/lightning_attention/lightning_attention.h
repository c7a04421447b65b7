// Lightning attention: linear attention with a constant decay for each head, and neither softmax
// nor scaling. Qin et al., "TransNormerLLM", arXiv:2307.14995, equation 9, computed by tiles as in
// "Lightning Attention-2", arXiv:2401.04658, algorithms 1 and 2. For each head, with S [dk, dv]:
//
//   S_t = lambda S_{t-1} + k_t v_t^T      o_t = S_t^T q_t      lambda = exp(-rate)      S_{-1} = s0
//
// and at a document start (position 0) lambda := 0. The gradients are the same recurrence again:
// with G_t that of S_t,
//
//   dq_t = S_t do_t      G_t = lambda G_{t+1} + q_t do_t^T      dk_t = G_t v_t      dv_t = G_t^T
//   k_t
//
// which is, forward in time, lightning attention of (do, v, k), and backward in time that of
// (v, do, q) and (k, q, do).
//
// B sequences, T tokens, H heads of width dk (keys) and dv (values); positions rise by one inside a
// document. States, rate and what a summary holds have full precision, the others the activations'
// type: float32, on the CPU also float64, on a GPU also bfloat16. On a GPU dk and dv are at most
// kMaxLightningCudaWidth.
//
// A workspace is scratch of float32: as many elements as the function beside it says; where that is
// 0, it may be absent. Its contents mean nothing before and after a call.
#pragma once

#include "core/tensor.h"

namespace eyrie {

inline constexpr int64_t kMaxLightningCudaWidth = 256;

struct LightningAttentionForwardArgs {
  Tensor q, k;       // [B, T, H, dk]
  Tensor v;          // [B, T, H, dv]
  Tensor rate;       // [H], not negative
  Tensor positions;  // [B, T] int32, position of each token inside its document
  Tensor s0;         // [B, H, dk, dv] carried state, or absent for zeros
  Tensor o;          // [B, T, H, dv] out
  Tensor s_last;     // [B, H, dk, dv] out, the state after the last token; optional
  Tensor workspace;
};
void LightningAttentionForward(const LightningAttentionForwardArgs& args);

// Gradients of the above.
struct LightningAttentionBackwardArgs {
  Tensor q, k, v, rate, positions, s0;  // as in the forward pass
  Tensor dout;                          // [B, T, H, dv], gradient of o
  Tensor ds_last;                       // [B, H, dk, dv] gradient of the state handed on, or absent
  Tensor dq, dk, dv;                    // like q, k, v, out, overwritten
  Tensor ds0;                           // [B, H, dk, dv] out, overwritten; optional
  Tensor workspace;
};
void LightningAttentionBackward(const LightningAttentionBackwardArgs& args);

// The recurrence over a whole chunk is an affine map of the state before it, s_last = decay * s0 +
// increment with one decay a head: what ranks that hold other chunks of the sequence exchange.
struct LightningAttentionSummaryArgs {
  Tensor k, v, rate, positions;  // as in the forward pass
  Tensor decay;                  // [B, H] out
  Tensor increment;              // [B, H, dk, dv] out
  Tensor workspace;
};
void LightningAttentionSummary(const LightningAttentionSummaryArgs& args);

// The same of the backward pass: ds0 = decay * ds_last + increment.
struct LightningAttentionGradSummaryArgs {
  Tensor q, rate, positions, dout;  // as in the backward pass
  Tensor decay;                     // [B, H] out
  Tensor increment;                 // [B, H, dk, dv] out
  Tensor workspace;
};
void LightningAttentionGradSummary(const LightningAttentionGradSummaryArgs& args);

// Of each of the four, for keys like k and values like v.
int64_t LightningAttentionWorkspace(const Tensor& k, const Tensor& v);

}  // namespace eyrie
