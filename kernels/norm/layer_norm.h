// LayerNorm (Ba et al., arXiv:1607.06450) of groups of channels, without a bias and with the weight
// stored as an offset from one:
//
//   mean, var over the group (biased)    rstd = 1 / sqrt(var + epsilon)
//   y = (x - mean) * rstd * (1 + weight)
//
// One group is the LayerNorm of a whole row; one a head is xLSTM's multi-head norm (Beck et al.,
// arXiv:2405.04517, appendix A).
//
// N rows of G groups of D channels. mean, rstd and dweight have full precision, the others the
// activations' type: float32, on the CPU also float64, on a GPU also bfloat16, where D is at most
// kMaxNormWidthCuda (rms_norm.h).
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct LayerNormForwardArgs {
  Tensor x;       // [..., G, D], N G rows of D
  Tensor weight;  // [G, D]
  double epsilon = 1e-5;
  Tensor y;           // like x, out
  Tensor mean, rstd;  // [N G] elements in any shape, out
};
void LayerNormForward(const LayerNormForwardArgs& args);

struct LayerNormBackwardArgs {
  Tensor x, weight, mean, rstd;  // as in the forward pass
  Tensor dy;                     // like x
  Tensor dresidual;              // like x: gradient of the residual stream, added to dx; or absent
  Tensor dx;                     // like x, out, overwritten (may be the same memory as dresidual)
  Tensor dweight;                // [G, D] out, added to, in a fixed order
  Tensor workspace;              // LayerNormBackwardWorkspace(x) float32 elements
};
void LayerNormBackward(const LayerNormBackwardArgs& args);
// 0 on the CPU.
int64_t LayerNormBackwardWorkspace(const Tensor& x);

}  // namespace eyrie
