// What TransNormerLLM makes of queries and keys: SiLU, then in some layers LRPE-d, a rotation by
// learned angles (Qin et al., "TransNormerLLM", arXiv:2307.14995, equation 5; "Linearized Relative
// Positional Encoding", arXiv:2307.09270). With x' = silu(x) and the angle a = position * theta,
//
//   y = [x' cos(a), x' sin(a)]
//
// so that the product of a query and a key holds the cosines of theta times their distance. Without
// theta, y = x'. Angles are computed in float64.
//
// B sequences, T tokens, H heads of width dh. dtheta has full precision, the others the
// activations' type: float32, on the CPU also float64, on a GPU also bfloat16.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct LrpeForwardArgs {
  Tensor x;          // [B, T, H, dh]
  Tensor theta;      // [H, dh], or absent: SiLU alone
  Tensor positions;  // [B, T] int32, position of each token inside its document
  Tensor y;          // [B, T, H, 2 dh] out; without theta [B, T, H, dh]
};
void LrpeForward(const LrpeForwardArgs& args);

struct LrpeBackwardArgs {
  Tensor x, theta, positions;  // as in the forward pass
  Tensor dy;                   // like y
  Tensor dx;                   // like x, out, overwritten; without theta it may be dy
  Tensor dtheta;               // [H, dh] out, added to; absent without theta
  Tensor workspace;            // LrpeBackwardWorkspace(x, theta) float32 elements
};
void LrpeBackward(const LrpeBackwardArgs& args);
// 0 on the CPU, where the workspace may be absent.
int64_t LrpeBackwardWorkspace(const Tensor& x, const Tensor& theta);

}  // namespace eyrie
