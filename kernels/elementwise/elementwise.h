// Small elementwise operations on activations: float32, on the CPU also float64, on a GPU also
// bfloat16. Shapes equal.
#pragma once

#include "core/tensor.h"

namespace eyrie {

// out = a + b; out may be a or b.
void Add(const Tensor& a, const Tensor& b, const Tensor& out);
// Each of the rows of y [..., C] := bias [C].
void BroadcastRows(const Tensor& bias, const Tensor& y);
// Each of the rows of y [..., C] += row [C].
void AddRow(const Tensor& row, const Tensor& y);
// dbias[c] += sum over rows of dy[..., c], in row order; on a GPU in an order that depends on
// shapes alone. dbias [C] has full precision.
void SumRows(const Tensor& dy, const Tensor& dbias, const Tensor& workspace);
// The float32 elements of its workspace; 0 on the CPU, where it may be absent.
int64_t SumRowsWorkspace(const Tensor& dy);

}  // namespace eyrie
