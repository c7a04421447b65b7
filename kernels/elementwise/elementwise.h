// Small elementwise operations. float32 or float64, shapes equal.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// out = a + b; out may be a or b.
void Add(const Tensor& a, const Tensor& b, const Tensor& out);
// Each of the rows of y [..., C] := bias [C].
void BroadcastRows(const Tensor& bias, const Tensor& y);
// Each of the rows of y [..., C] += row [C].
void AddRow(const Tensor& row, const Tensor& y);
// dbias[c] += sum over rows of dy[..., c], in row order.
void SumRows(const Tensor& dy, const Tensor& dbias);

}  // namespace eyrie
