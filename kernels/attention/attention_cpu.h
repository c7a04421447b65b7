// The CPU bodies behind attention.h; arguments are already validated.
#pragma once

#include "kernels/attention/attention.h"

namespace eyrie {

template <class T>
void AttentionForwardCpu(const AttentionForwardArgs& args);
template <class T>
void AttentionBackwardCpu(const AttentionBackwardArgs& args);

}  // namespace eyrie
