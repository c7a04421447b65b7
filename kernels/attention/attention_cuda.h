// CUDA bodies of attention; attention.cc checks the arguments.
#pragma once

#include "kernels/attention/attention.h"

namespace eyrie {

void AttentionForwardCuda(const AttentionForwardArgs& args);
void AttentionBackwardCuda(const AttentionBackwardArgs& args);

}  // namespace eyrie
