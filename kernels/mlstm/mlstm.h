// The mLSTM cell: linear attention with exponential gates, a matrix memory C [dk, dv], its
// normaliser n [dk] and their stabiliser m. Beck et al., "xLSTM", arXiv:2405.04517, equations 19 to
// 27; chunkwise as in Beck et al., "Tiled Flash Linear Attention", arXiv:2503.14376. For each head,
// with q scaled by dk^-1/2 and the logarithms i of the input and f of the forget gate:
//
//   m_t = max(f_t + m_{t-1}, i_t)                  (stabilised; else 0 throughout)
//   C_t = exp(f_t + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T
//   n_t = exp(f_t + m_{t-1} - m_t) n_{t-1} + exp(i_t - m_t) k_t
//   h_t = C_t^T q_t / b_t        b_t = max(|n_t . q_t|, exp(-m_t)) + epsilon
//
// At a document start (position 0) nothing from before counts, as if C_{t-1} = n_{t-1} = 0 and
// m_{t-1} = -infinity; the same holds before the first token without a state. Where the memory is
// not normalised (`normalised` false), h_t = C_t^T q_t; such a memory must not be stabilised, since
// nothing would undo the factor exp(-m_t) of C_t.
//
// B sequences, T tokens, H heads of width dk (queries and keys) and dv (values); positions rise by
// one inside a document. Gates, states, what forward saves for backward and what a summary holds
// have full precision, the others the activations' type: float32, on the CPU also float64, on a GPU
// also bfloat16. There dk and dv are at most kMaxMlstmCudaWidth, and with bfloat16 multiples of
// kMlstmBf16Multiple.
//
// A workspace is scratch of float32: as many elements as the function beside it says; where that is
// 0, it may be absent. Its contents mean nothing before and after a call.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// The stabiliser of an empty memory: exp(kMlstmEmpty - m) is 0 for every m of a token, and sums and
// differences with it stay finite. A state with c = n = 0 and this m is the one before any token.
inline constexpr double kMlstmEmpty = -1e30;

// Of heads on a GPU.
inline constexpr int64_t kMaxMlstmCudaWidth = 1280, kMlstmBf16Multiple = 16;

// The memory between two tokens; all absent: empty.
struct MlstmState {
  Tensor c;  // [B, H, dk, dv], the true one times exp(-m)
  Tensor n;  // [B, H, dk], likewise
  Tensor m;  // [B, H]
};

// How the cell is computed; the same in the forward and the backward pass.
struct MlstmOptions {
  // Needed where a gate's logarithm may exceed 0. Without it m is 0: for sigmoid gates.
  bool stabilised = true;
  bool normalised = true;  // needed where the memory is stabilised
  // Of b_t with respect to q, k and the gates; exact with it. Public kernels leave it out, which
  // changes nothing where a norm of each head follows whose epsilon is 0.
  bool normaliser_gradient = true;
  double epsilon = 1e-6;
  // Tokens whose outputs are computed from one state; 0: what the body prefers. 1 is the recurrent
  // form. On a GPU, tokens between two states that are kept in memory, rounded up to a multiple of
  // 64; a single token is a step of the recurrence.
  int64_t chunk = 0;
};

struct MlstmForwardArgs {
  Tensor q, k;          // [B, T, H, dk], q not yet scaled
  Tensor v;             // [B, T, H, dv]
  Tensor log_i, log_f;  // [B, T, H] logarithms of the gates
  Tensor positions;     // [B, T] int32, position of each token inside its document
  MlstmState before;    // or absent
  Tensor h;             // [B, T, H, dv] out
  Tensor maximum;       // [B, T, H] out, m_t, for backward
  Tensor normaliser;    // [B, T, H] out, n_t . q_t with q scaled, for backward
  MlstmState after;     // out, after the last token; optional
  Tensor memories;      // out, MlstmMemories() elements of float32; optional, without `before`
  MlstmOptions options;
  Tensor workspace;
};
void MlstmForward(const MlstmForwardArgs& args);

// Gradients of the above. Those of a state are with respect to its stored c and n, for a constant
// m (h does not depend on it, up to epsilon): their m is absent.
struct MlstmBackwardArgs {
  Tensor q, k, v, log_i, log_f, positions;  // as in the forward pass
  MlstmState before;                        // likewise
  Tensor h, maximum, normaliser;            // of the forward pass
  Tensor dh;                                // [B, T, H, dv]
  Tensor h_dh;  // h . dh [B, T, H] of full precision, where known; or absent
  // Of the forward pass, overwritten; without `before` and `dafter`. Absent: made again, with the
  // same result.
  Tensor memories;
  MlstmState dafter;  // with respect to `after`, or absent
  // The `m` of `after`, [B, H]; with dafter.
  Tensor after_m;
  Tensor dq, dk, dv;      // like q, k, v, out, overwritten
  Tensor dlog_i, dlog_f;  // [B, T, H] out, overwritten
  MlstmState dbefore;     // out, overwritten; optional
  MlstmOptions options;
  Tensor workspace;
};
void MlstmBackward(const MlstmBackwardArgs& args);

// What a chunk does to the memory, for ranks that hold other chunks of the sequence: it scales what
// enters by exp(log_decay), and adds `increment`, the state after the chunk when it starts empty.
// With an entering state s, after a chunk: m = max(log_decay + s.m, increment.m), c = exp(log_decay
// + s.m - m) s.c + exp(increment.m - m) increment.c, n alike.
struct MlstmSummaryArgs {
  Tensor k, v, log_i, log_f, positions;  // as in the forward pass
  Tensor log_decay;                      // [B, H] out; kMlstmEmpty where a document starts
  MlstmState increment;                  // out
  MlstmOptions options;
  Tensor workspace;
};
void MlstmSummary(const MlstmSummaryArgs& args);

// The same of the backward pass, an affine map: dbefore = decay * dafter + increment.
struct MlstmGradSummaryArgs {
  Tensor q, log_f, positions;     // as in the forward pass
  Tensor before_m, after_m;       // [B, H], m of the states before and after the chunk; before_m
                                  // absent: empty
  Tensor h, maximum, normaliser;  // of the forward pass
  Tensor dh;                      // [B, T, H, dv]
  Tensor h_dh;                    // [B, T, H], as in the backward pass
  Tensor decay;                   // [B, H] out, exp(log_decay + before_m - after_m)
  Tensor increment_c;             // [B, H, dk, dv] out
  Tensor increment_n;             // [B, H, dk] out
  MlstmOptions options;
  Tensor workspace;
};
void MlstmGradSummary(const MlstmGradSummaryArgs& args);

// Of each of the four, for queries like q and values like v.
int64_t MlstmWorkspace(const Tensor& q, const Tensor& v, const MlstmOptions& options);
// What the forward pass can leave of the memories between chunks; 0 where it has none to leave.
int64_t MlstmMemories(const Tensor& q, const Tensor& v, const MlstmOptions& options);

}  // namespace eyrie
