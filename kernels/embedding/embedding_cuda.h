// The CUDA bodies behind embedding.h; arguments are already validated.
#pragma once

#include "kernels/embedding/embedding.h"

namespace eyrie {

void EmbeddingForwardCuda(const EmbeddingForwardArgs& args);
void EmbeddingBackwardCuda(const EmbeddingBackwardArgs& args);
int64_t EmbeddingBackwardWorkspaceCuda(const Tensor& tokens, const Tensor& dtable);

}  // namespace eyrie
