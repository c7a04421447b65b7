// The sLSTM cell: scalar memories with exponential gates, mixed within each head by recurrent
// matrices. Beck et al., "xLSTM", arXiv:2405.04517, equations 8 to 18 and 28; kernels in the manner
// of Poeppel et al., "FlashRNN", arXiv:2412.07752. For each head, unit by unit, with the
// pre-activations of the gates g = i, f, z, o in this order:
//
//   p_g = x_g + sum_u y_{t-1,u} r[u, g] + bias_g
//   log_f = log sigmoid(p_f), or p_f for an exponential forget gate
//   m_t = max(log_f + m_{t-1}, p_i); p_i where n_{t-1} = 0
//   c_t = exp(log_f + m_{t-1} - m_t) c_{t-1} + exp(p_i - m_t) tanh(p_z)
//   n_t = exp(log_f + m_{t-1} - m_t) n_{t-1} + exp(p_i - m_t)
//   y_t = sigmoid(p_o) c_t / n_t
//
// Before the first token and at a document start (position 0) y = c = n = m = 0. What enters the
// product with r is y as stored, in the activations' type, so that backward can compute p again
// from x and y and nothing else is saved.
//
// B sequences, T tokens, H heads of d units; positions rise by one inside a document. bias, states,
// dbias and dr have full precision, the others the activations' type: float32, on the CPU also
// float64, on a GPU also bfloat16.
//
// A workspace is scratch of float32: as many elements as the function beside it says; where that is
// 0, it may be absent. Its contents mean nothing before and after a call.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// Between two tokens, [B, H, d] each; all absent: zeros.
struct SlstmState {
  Tensor y, c, n, m;
};

struct SlstmForwardArgs {
  Tensor x;          // [B, T, H, 4, d]
  Tensor r;          // [H, d, 4, d], from unit u to gate g of a unit
  Tensor bias;       // [H, 4, d]
  Tensor positions;  // [B, T] int32, position of each token inside its document
  bool exponential_forget = false;
  SlstmState before;  // or absent
  Tensor y;           // [B, T, H, d] out
  SlstmState after;   // out, after the last token; optional
  Tensor workspace;   // SlstmForwardWorkspace
};
void SlstmForward(const SlstmForwardArgs& args);
int64_t SlstmForwardWorkspace(const Tensor& x);

// Gradients of the above, exact through time: y depends on c and n only, so m counts as constant.
struct SlstmBackwardArgs {
  Tensor x, r, bias, positions;  // as in the forward pass
  bool exponential_forget = false;
  SlstmState before;   // likewise
  Tensor y;            // of the forward pass
  Tensor dy;           // [B, T, H, d]
  SlstmState dafter;   // gradients of y, c and n handed on (m absent), or all absent
  Tensor dx;           // like x, out, overwritten
  Tensor dr, dbias;    // like r and bias, out, added to, in a fixed order
  SlstmState dbefore;  // out, overwritten, m absent; optional
  Tensor workspace;    // SlstmBackwardWorkspace
};
void SlstmBackward(const SlstmBackwardArgs& args);
int64_t SlstmBackwardWorkspace(const Tensor& x);

}  // namespace eyrie
