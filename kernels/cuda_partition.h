// What host code of every build knows of how CUDA bodies cut their work, so that a run on GPUs can
// be planned without one: kernels/<op>/<op>_cuda.h, or <op>_plan.h, builds on this.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/round.h"

// Marks small functions that host code and device code both call.
#ifdef __CUDACC__
#define EYRIE_HOST_DEVICE __host__ __device__
#else
#define EYRIE_HOST_DEVICE
#endif

namespace eyrie {

// Multiprocessors that work is cut for, an H100's: results and scratch do not depend on the GPU.
inline constexpr int64_t kPlannedMultiprocessors = 132;

// Rows that the first stage of a sum over the rows of a matrix adds up in one block
// (kernels/column_sum.cuh): so many that about 512 blocks, as many as an H100 runs at once,
// share them, and at least 32.
inline int64_t ColumnSumChunk(int64_t rows, int64_t width) {
  const int64_t tiles = CeilDiv(width, 256);
  return std::max<int64_t>(32, CeilDiv(rows, std::max<int64_t>(1, 512 / tiles)));
}

}  // namespace eyrie
