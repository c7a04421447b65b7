// AdamW (Loshchilov and Hutter, arXiv:1711.05101, with decoupled decay scaled by the rate), one
// step over one range of parameters:
//
//   g = grad * grad_scale    m = b1 m + (1-b1) g    v = b2 v + (1-b2) g^2
//   p -= rate * ( (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + epsilon) + weight_decay * p )
//
// Parameters and gradients have full precision: float32, on the CPU also float64. So have the
// moments, or else they are bfloat16 (on a GPU), rounded to nearest even where they are stored: the
// parameter moves by the moments before they are rounded. At a beta2 above 0.996 a rounded v may
// stand still where it should decay.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// Elements that are decayed or not together, where parameters that differ in it are stepped at
// once.
inline constexpr int64_t kDecayGroup = 16;
// The int32 elements that hold a bit for each group of `elements` elements.
constexpr int64_t DecayWords(int64_t elements) {
  return (elements + 32 * kDecayGroup - 1) / (32 * kDecayGroup);
}

struct AdamWArgs {
  Tensor param, grad, m, v;  // any shape, the same for all
  Tensor copy;               // out: the parameter, rounded to the type of this tensor; or absent
  // [DecayWords] int32: weight_decay holds for group j of kDecayGroup successive elements where bit
  // j % 32 of element j / 32 is set. Absent: for all.
  Tensor decays;
  double rate = 0.0, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.0;
  double grad_scale = 1.0;  // gradient clipping
  int64_t step = 1;         // counts from 1
};
void AdamW(const AdamWArgs& args);

// sum += the sum of the squares of `values` [...], in float64 and in an order that depends on their
// number alone. `sum` is one float64 element on the device of the values: nothing waits for it.
void SumOfSquares(const Tensor& values, const Tensor& sum, const Tensor& workspace);
// The float32 elements of its workspace; 0 on the CPU, where it may be absent.
int64_t SumOfSquaresWorkspace(const Tensor& values);

}  // namespace eyrie
