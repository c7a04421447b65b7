// The CPU bodies behind cross_entropy.h; arguments are already validated.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace eyrie {

template <class T>
void SoftCapCpu(const Tensor& logits, double soft_cap);
template <class T>
void SoftmaxPartialsCpu(const SoftmaxPartialsArgs& args);
template <class T>
void RescalePartialsCpu(const Tensor& own_max, const Tensor& row_max, const Tensor& partials);
template <class T>
void RowArgmaxCpu(const RowArgmaxArgs& args);
template <class T>
void CrossEntropyLossCpu(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                         const Tensor& loss);
template <class T>
void CrossEntropyGradCpu(const CrossEntropyGradArgs& args);

}  // namespace eyrie
