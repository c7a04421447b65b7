// The CUDA bodies behind cross_entropy.h; arguments are already validated.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace eyrie {

void SoftCapRowMaxCuda(const SoftCapRowMaxArgs& args);
void RowArgmaxCuda(const RowArgmaxArgs& args);
void SoftmaxPartialsCuda(const SoftmaxPartialsArgs& args);
void CrossEntropyLossCuda(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                          const Tensor& loss);
void CrossEntropyGradCuda(const CrossEntropyGradArgs& args);

}  // namespace eyrie
