// SimpleRMSNorm under an output gate, of rows that may be cut over ranks (Qin et al.,
// "TransNormerLLM", arXiv:2307.14995, equations 7 and 10):
//
//   out = gate * x * r      r = 1 / sqrt(squares / width + epsilon)
//
// where `squares`, the sum of x^2 over a whole row of `width` elements, is the caller's:
// RowProducts gives that of the part of a row at hand, which ranks then add up. The same holds for
// `along`, the row's sum of dout * gate * x, in the backward pass.
//
// N rows; C elements of each are here. Sums have full precision, the others the activations' type:
// float32, on the CPU also float64, on a GPU also bfloat16.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct RowProductsArgs {
  Tensor a, b;  // [..., C], N rows
  Tensor c;     // likewise; absent: ones
  Tensor sums;  // [N] elements in any shape, out: each row's sum of a * b * c
};
void RowProducts(const RowProductsArgs& args);

struct GatedNormForwardArgs {
  Tensor x, gate;  // [..., C], N rows
  Tensor squares;  // [N] elements in any shape
  int64_t width = 0;
  double epsilon = 1e-6;
  Tensor out;  // like x, out
};
void GatedNormForward(const GatedNormForwardArgs& args);

struct GatedNormBackwardArgs {
  Tensor x, gate, squares;  // as in the forward pass
  int64_t width = 0;
  double epsilon = 1e-6;
  Tensor along;      // like squares
  Tensor dout;       // like x
  Tensor dx, dgate;  // like x, out, overwritten; either may be the same memory as dout
};
void GatedNormBackward(const GatedNormBackwardArgs& args);

}  // namespace eyrie
