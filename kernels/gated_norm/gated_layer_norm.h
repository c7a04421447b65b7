// LayerNorm of groups of channels, a learned skip past it and an output gate: the way out of
// xLSTM's memories (Beck et al., arXiv:2405.04517, figure 11; without the skip, Beck et al.,
// arXiv:2503.13427, section 2):
//
//   out = (norm(x) + skip * s) * act(gate)      norm(x) = (x - mean) * rstd * (1 + weight)
//
// with the mean and 1 / sqrt(variance + epsilon) of each group (kernels/norm/layer_norm.h), and act
// SiLU or sigmoid. One pass over every tensor in both directions.
//
// N rows of G groups of D channels. mean, rstd, dweight and dskip have full precision, the others
// the activations' type: float32, on the CPU also float64, on a GPU also bfloat16, where D is at
// most 2048.
#pragma once

#include "kernels/glu/glu.h"

namespace eyrie {

struct GatedLayerNormForwardArgs {
  Tensor x;                                   // [..., G, D], N G rows of D
  Tensor weight;                              // [G, D]
  Tensor skip, s;                             // [G, D] and like x; both absent: no skip
  Activation activation = Activation::kSilu;  // or kSigmoid
  Tensor gate;                                // like x
  double epsilon = 1e-5;
  Tensor out;         // like x, out
  Tensor mean, rstd;  // [N G] elements in any shape, out
};
void GatedLayerNormForward(const GatedLayerNormForwardArgs& args);

struct GatedLayerNormBackwardArgs {
  Tensor x, weight, skip, s;  // as in the forward pass
  Activation activation = Activation::kSilu;
  Tensor gate, mean, rstd;
  Tensor dout;           // like x
  Tensor dx, ds, dgate;  // like x, out, overwritten; one may be the same memory as dout
  // x . dx of each group, N G elements of full precision, out, or absent. What the norm of x leaves
  // of it, with rstd, is all: D mean(normed x times its gradient) epsilon rstd^2.
  Tensor x_dx;
  double epsilon = 0;     // as in the forward pass; with x_dx
  Tensor dweight, dskip;  // [G, D] out, added to, in a fixed order
  Tensor workspace;       // GatedLayerNormBackwardWorkspace(x, skip) float32 elements
};
void GatedLayerNormBackward(const GatedLayerNormBackwardArgs& args);
// 0 on the CPU.
int64_t GatedLayerNormBackwardWorkspace(const Tensor& x, const Tensor& skip);

}  // namespace eyrie
