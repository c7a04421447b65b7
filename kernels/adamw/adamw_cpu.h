// The CPU bodies behind adamw.h; arguments are already validated.
#pragma once

#include "kernels/adamw/adamw.h"

namespace eyrie {

template <class T>
void AdamWCpu(const AdamWArgs& args);
template <class T>
double SumOfSquaresCpu(const Tensor& values);

}  // namespace eyrie
