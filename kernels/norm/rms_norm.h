// RMSNorm (Zhang and Sennrich, arXiv:1910.07467) with the weight stored as an offset from one:
//
//   rstd = 1 / sqrt(mean(x^2) + epsilon)      y = x * rstd * (1 + weight)
//
// or without one: SimpleRMSNorm (Qin et al., "TransNormerLLM", arXiv:2307.14995, equation 14).
//
// N rows of width D. rstd and dweight have full precision, the others the activations' type:
// float32, on the CPU also float64, on a GPU also bfloat16, where D is at most
// kMaxNormWidthCuda, the widest rows that a block of threads holds in its registers.
#pragma once

#include "core/tensor.h"

namespace eyrie {

inline constexpr int64_t kMaxNormWidthCuda = 16384;

struct RmsNormForwardArgs {
  Tensor x;       // [..., D], N rows
  Tensor weight;  // [D], or absent for zeros
  double epsilon = 1e-6;
  Tensor y;     // like x, out
  Tensor rstd;  // [N] elements in any shape, out
};
void RmsNormForward(const RmsNormForwardArgs& args);

struct RmsNormBackwardArgs {
  Tensor x, weight, rstd;  // as in the forward pass
  Tensor dy;               // like x
  Tensor dresidual;        // like x: gradient of the residual stream, added to dx; or absent
  Tensor dx;               // like x, out, overwritten (may be the same memory as dresidual)
  Tensor dweight;          // [D] out, added to; absent where the weight is
  Tensor workspace;  // RmsNormBackwardWorkspace(x) float32 elements; absent where the weight is
};
void RmsNormBackward(const RmsNormBackwardArgs& args);
// 0 on the CPU.
int64_t RmsNormBackwardWorkspace(const Tensor& x);

}  // namespace eyrie
