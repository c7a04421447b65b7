// The CUDA bodies behind adamw.h; arguments are already validated.
#pragma once

#include "kernels/adamw/adamw.h"

namespace eyrie {

void AdamWCuda(const AdamWArgs& args);
void SumOfSquaresCuda(const Tensor& values, const Tensor& sum, const Tensor& workspace);
int64_t SumOfSquaresWorkspaceCuda(const Tensor& values);

}  // namespace eyrie
