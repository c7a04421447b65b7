// The CUDA bodies behind elementwise.h; arguments are already validated.
#pragma once

#include "core/tensor.h"
#include "kernels/cuda_partition.h"

namespace eyrie {

void AddCuda(const Tensor& a, const Tensor& b, const Tensor& out);
void BroadcastRowsCuda(const Tensor& bias, const Tensor& y);
void AddRowCuda(const Tensor& row, const Tensor& y);
void SumRowsCuda(const Tensor& dy, const Tensor& dbias, const Tensor& workspace);

}  // namespace eyrie
