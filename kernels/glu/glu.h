// Gated linear unit: out = act(gate) * value, elementwise (Shazeer, arXiv:2002.05202).
// Any shape, the same for all tensors. float32, on the CPU also float64, on a GPU also bfloat16.
#pragma once

#include "core/tensor.h"

namespace eyrie {

enum class Activation : uint8_t {
  kGeluTanh,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kGeluErf,   // 0.5 x (1 + erf(x / sqrt(2))), the exact one
  kSilu,      // x sigmoid(x): SwiGLU
  kSigmoid,   // of the original GLU (Dauphin et al., arXiv:1612.08083)
  kNone,      // x: TransNormerLLM's SGLU (arXiv:2307.14995, equation 13)
};

struct GluForwardArgs {
  Activation activation = Activation::kGeluTanh;
  Tensor gate, value;
  Tensor out;  // out
};
void GluForward(const GluForwardArgs& args);

struct GluBackwardArgs {
  Activation activation = Activation::kGeluTanh;
  Tensor gate, value;  // as in the forward pass
  Tensor dout;
  Tensor dgate, dvalue;  // out, overwritten; dvalue may be the same memory as dout
  // out, +=, optional: the sums over rows of dgate and dvalue as they are written, [..., C]; where
  // these are gradients of projections, those of the projections' biases. [C], full precision, in
  // row order; on a GPU in an order that depends on shapes alone.
  Tensor dgate_sum, dvalue_sum;
  Tensor workspace;  // on a GPU, for the sums
};
void GluBackward(const GluBackwardArgs& args);
// The float32 elements of the workspace; 0 without sums and on the CPU, where it may be absent.
int64_t GluBackwardWorkspace(const GluBackwardArgs& args);

}  // namespace eyrie
