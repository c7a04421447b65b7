// One pass of the recurrence over time, in either direction: what forward, backward and summaries
// are made of, on every device. Backward in time, "first" and "before" mean later tokens.
#pragma once

#include "kernels/lightning_attention/lightning_attention.h"

namespace eyrie {

// o_t = S_t^T q_t with S_t = lambda S_before + k_t v_t^T.
struct LightningPass {
  Tensor q, k;  // [B, T, H, key width]; q and o absent: only the state is wanted
  Tensor v;     // [B, T, H, value width]
  Tensor o;     // like v, out
  Tensor rate, positions;
  Tensor entering;  // [B, H, ...] the state before the first token of the pass; absent: zeros
  Tensor leaving;   // [B, H, ...] out, the state after its last token; optional
  // Backward in time. The decay then lies between a token and its outgoing state, not between the
  // entering state and the token: what enters is the gradient of the state after the last token,
  // what leaves that of the state before the first.
  bool reverse = false;
  // States lie in memory as [value width, key width].
  bool transposed = false;
};

// Those that the backward pass consists of; the third gives ds0.
inline LightningPass QueryGradient(const LightningAttentionBackwardArgs& args) {
  return {.q = args.dout,
          .k = args.v,
          .v = args.k,
          .o = args.dq,
          .rate = args.rate,
          .positions = args.positions,
          .entering = args.s0,
          .transposed = true};
}
inline LightningPass KeyGradient(const LightningAttentionBackwardArgs& args) {
  return {.q = args.v,
          .k = args.dout,
          .v = args.q,
          .o = args.dk,
          .rate = args.rate,
          .positions = args.positions,
          .entering = args.ds_last,
          .reverse = true,
          .transposed = true};
}
inline LightningPass ValueGradient(const LightningAttentionBackwardArgs& args) {
  return {.q = args.k,
          .k = args.q,
          .v = args.dout,
          .o = args.dv,
          .rate = args.rate,
          .positions = args.positions,
          .entering = args.ds_last,
          .leaving = args.ds0,
          .reverse = true};
}

// Tokens of a tile, in the order in which a pass comes to them.
constexpr int kLightningTile = 64;

// The document of a token is named by the index of its first token, or -1 where that lies before
// the chunk: two tokens see each other if these are equal.
constexpr int64_t DocumentOf(int64_t token, int64_t position) {
  return token < position ? -1 : token - position;
}
// Whether the document of a token began before it, so that the state before it counts.
constexpr bool ReachesBack(int64_t token, int64_t document) { return document < token; }

}  // namespace eyrie
