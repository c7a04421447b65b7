// The CUDA bodies behind rms_norm.h; arguments are already validated.
#pragma once

#include "kernels/cuda_partition.h"
#include "kernels/norm/rms_norm.h"

namespace eyrie {

inline void CheckNormWidth(const char* kernel, int64_t width, int64_t most = kMaxNormWidthCuda) {
  EYRIE_CHECK(width <= most, kernel, ": rows or groups of ", width, " elements, at most ", most);
}
// Blocks of the backward pass, each of which leaves a row of sums: about 1024 threads for each
// multiprocessor.
inline int64_t RmsNormBackwardBlocks(int64_t rows, int64_t width) {
  const int64_t each = width > 8192   ? 1
                       : width > 2048 ? 2
                                      : std::clamp<int64_t>(8192 / width, 4, 32);
  return std::min(rows, each * kPlannedMultiprocessors);
}

void RmsNormForwardCuda(const RmsNormForwardArgs& args);
void RmsNormBackwardCuda(const RmsNormBackwardArgs& args);

}  // namespace eyrie
