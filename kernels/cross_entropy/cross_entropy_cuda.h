// The CUDA bodies behind cross_entropy.h; arguments are already validated.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace eyrie {

void SoftCapCuda(const Tensor& logits, double soft_cap);
void SoftmaxPartialsCuda(const SoftmaxPartialsArgs& args);
void RescalePartialsCuda(const Tensor& own_max, const Tensor& row_max, const Tensor& partials);
void RowArgmaxCuda(const RowArgmaxArgs& args);
void CrossEntropyLossCuda(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                          const Tensor& loss);
void CrossEntropyGradCuda(const CrossEntropyGradArgs& args);

}  // namespace eyrie
