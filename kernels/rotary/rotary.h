// Rotary position embedding (Su et al., arXiv:2104.09864) on the first half of each head,
// split-half pairing, as in the Griffin family: with n = dh / 4 and angle_i = position * base^(-2i
// / (dh/2)),
//
//   y[i] = x[i] cos - x[i+n] sin      y[i+n] = x[i+n] cos + x[i] sin      i < n
//
// and y[j] = x[j] for j >= dh/2. Angles are computed in float64. In place. float32, on the CPU also
// float64, on a GPU also bfloat16.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct RotaryArgs {
  Tensor x;          // [B, T, H, dh], rotated in place; dh divides by 4
  Tensor positions;  // [B, T] int32
  double base = 10000.0;
  bool inverse = false;  // rotate by the negative angle: the backward pass
};
void Rotary(const RotaryArgs& args);

}  // namespace eyrie
