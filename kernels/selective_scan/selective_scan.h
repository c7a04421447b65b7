// The selective scan of Mamba (S6) with its discretisation, skip and gate, in one pass.
// Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752,
// algorithm 2; B is discretised by Euler's rule, as in the released code:
//
//   delta = softplus(dt + dt_bias)   A = -exp(a_log)
//   h_t[e, n] = exp(delta_t[e] A[e, n]) h_{t-1}[e, n] + delta_t[e] B_t[n] x_t[e]      h_{-1} = h0
//   out_t[e] = (sum over n of C_t[n] h_t[e, n] + skip[e] x_t[e]) silu(z_t[e])
//
// At a document start (position 0) the state before counts as zero. B sequences, T tokens, E
// channels, N states a channel (1 to 64). Parameters (a_log, skip, dt_bias) and their gradients,
// states and what a summary holds have full precision, the others the activations' type: float32,
// on the CPU also float64, on a GPU also bfloat16.
//
// B_t and C_t are read from where the projection that makes them leaves them: `bc` [B, T, S] has
// rows that end in B_t [N] and C_t [N]; what comes before them in a row is not touched.
//
// States of single tokens never reach memory. A workspace is scratch of float32: as many elements
// as the function beside it says; where that is 0, it may be absent. Its contents mean nothing
// before and after a call.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct SelectiveScanForwardArgs {
  Tensor x;          // [B, T, E]
  Tensor dt;         // [B, T, E] before dt_bias and the softplus
  Tensor z;          // [B, T, E] of the gate
  Tensor bc;         // [B, T, S]
  Tensor a_log;      // [E, N]
  Tensor skip;       // [E]
  Tensor dt_bias;    // [E]
  Tensor positions;  // [B, T] int32, position of each token inside its document
  Tensor h0;         // [B, E, N] carried state, or absent for zeros
  Tensor out;        // [B, T, E] out
  Tensor h_last;     // [B, E, N] out, the state after the last token; optional
  Tensor workspace;
};
void SelectiveScanForward(const SelectiveScanForwardArgs& args);
int64_t SelectiveScanForwardWorkspace(const Tensor& x, int64_t states);

// Gradients of the above. The states are computed once more.
struct SelectiveScanBackwardArgs {
  Tensor x, dt, z, bc, a_log, skip, dt_bias, positions, h0;  // as in the forward pass
  Tensor dout;                                               // [B, T, E]
  Tensor dh_last;   // [B, E, N] gradient of the state handed to the next chunk, or absent
  Tensor dx, ddt;   // [B, T, E] out, overwritten
  Tensor dz;        // [B, T, E] out, overwritten; may be the same memory as dout
  Tensor dbc;       // [B, T, S] out: the last 2N of each row, overwritten
  Tensor dh0;       // [B, E, N] out, overwritten; optional
  Tensor da_log;    // [E, N] out, added to
  Tensor dskip;     // [E] out, added to
  Tensor ddt_bias;  // [E] out, added to
  Tensor workspace;
};
void SelectiveScanBackward(const SelectiveScanBackwardArgs& args);
int64_t SelectiveScanBackwardWorkspace(const Tensor& x, int64_t states);

// The recurrence over a whole chunk is an affine map of the state before it, h_last = decay * h0 +
// increment, element by element: what ranks that hold other chunks of the sequence exchange.
struct SelectiveScanSummaryArgs {
  Tensor x, dt, bc, a_log, dt_bias, positions;  // as in the forward pass
  Tensor decay, increment;                      // [B, E, N] out
  Tensor workspace;
};
void SelectiveScanSummary(const SelectiveScanSummaryArgs& args);
// Of both summaries, for x or dout.
int64_t SelectiveScanSummaryWorkspace(const Tensor& x, int64_t states);

// The same of the backward pass: dh0 = decay * dh_last + increment.
struct SelectiveScanGradSummaryArgs {
  Tensor dt, z, bc, a_log, dt_bias, positions, dout;  // as in the backward pass
  Tensor decay, increment;                            // [B, E, N] out
  Tensor workspace;                                   // SelectiveScanSummaryWorkspace
};
void SelectiveScanGradSummary(const SelectiveScanGradSummaryArgs& args);

}  // namespace eyrie
