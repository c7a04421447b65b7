// Causal multi-query attention (Shazeer, arXiv:1911.02150) inside documents, optionally local.
// H query heads share one key and value head. Query t of sequence b sees key t - s when
//
//   0 <= s <= min(positions[b, t], window)          (window 0: no limit)
//
// so at most window + 1 keys, never across a document's start. Keys before this chunk come from
// `past_k`, `past_v`, whose last row directly precedes token 0; what would lie before their first
// row does not exist.
//
//   P = softmax(dh^-1/2 q k^T)      o = P v
//
// B sequences, T tokens, H query heads, dh head width, P past rows. float32 or float64 on the CPU;
// float32 or bfloat16 on a GPU, where dh divides by 4 and is at most kMaxAttentionCudaWidth, and
// bfloat16 with a dh that divides by 8 runs on the tensor cores. lse keeps full precision
// (core/dtype.h).
#pragma once

#include "core/tensor.h"

namespace eyrie {

inline constexpr int64_t kMaxAttentionCudaWidth = 256;

// Pairs of a query and a key that it sees, of one head and a sequence that is one document, for the
// `tokens` queries that follow `before` others.
double VisiblePairs(int64_t before, int64_t tokens, int64_t window);

struct AttentionForwardArgs {
  Tensor q;               // [B, T, H, dh]
  Tensor k, v;            // [B, T, dh]
  Tensor past_k, past_v;  // [B, P, dh], or absent when P = 0
  Tensor positions;       // [B, T] int32
  int64_t window = 0;
  Tensor o;          // [B, T, H, dh] out
  Tensor lse;        // [B, T, H] out, log of the softmax's denominator
  Tensor workspace;  // float32, at least as many elements as AttentionForwardWorkspace tells
};
// Elements of workspace for these arguments; their outputs and workspace may still be absent. 0 on
// the CPU, and where every block of a GPU sees all its keys.
int64_t AttentionForwardWorkspace(const AttentionForwardArgs& args);
void AttentionForward(const AttentionForwardArgs& args);

struct AttentionBackwardArgs {
  Tensor q, k, v, past_k, past_v, positions;  // as in the forward pass
  int64_t window = 0;
  Tensor o, lse;            // the forward pass's outputs
  Tensor dout;              // [B, T, H, dh] gradient of o
  Tensor dq;                // [B, T, H, dh] out, overwritten
  Tensor dk, dv;            // [B, T, dh] out, overwritten, summed over heads
  Tensor dpast_k, dpast_v;  // [B, P, dh] out, overwritten; optional
  Tensor workspace;  // float32, at least as many elements as AttentionBackwardWorkspace tells
};
// As AttentionForwardWorkspace.
int64_t AttentionBackwardWorkspace(const AttentionBackwardArgs& args);
void AttentionBackward(const AttentionBackwardArgs& args);

}  // namespace eyrie
