// The CPU bodies behind embedding.h; arguments are already validated.
#pragma once

#include "kernels/embedding/embedding.h"

namespace eyrie {

template <class T>
void EmbeddingForwardCpu(const EmbeddingForwardArgs& args);
template <class T>
void EmbeddingBackwardCpu(const EmbeddingBackwardArgs& args);

}  // namespace eyrie
