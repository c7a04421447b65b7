// Sums over rows on a GPU, in an order that depends on shapes alone: for gradients of parameters,
// from the partial sums of many blocks.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/partition.h"

namespace eyrie {

inline constexpr int kRowSumThreads = 8;  // that share the rows of one column

template <class Scale>
__global__ void AddRowSumKernel(const float* x, int64_t rows, int64_t pitch, int64_t columns,
                                float* out, Scale scale) {
  __shared__ float shares[kRowSumThreads][32];
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x;
  float sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (int64_t row = threadIdx.y; row < rows; row += kRowSumThreads) sum += x[row * pitch + c];
  }
  shares[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= columns) return;
  for (int i = 1; i < kRowSumThreads; ++i) sum += shares[i][threadIdx.x];
  out[c] += scale(c) * sum;
}

// out[c] += scale(c) * sum over rows of x[row, c], for the first `columns` of rows that lie `pitch`
// elements apart. `scale` is device code.
template <class Scale>
void AddRowSumCuda(const char* name, const float* x, int64_t rows, int64_t pitch, int64_t columns,
                   float* out, const Scale& scale) {
  Launch(name, AddRowSumKernel<Scale>, dim3(static_cast<unsigned>(CeilDiv(columns, 32))),
         dim3(32, kRowSumThreads), 0, x, rows, pitch, columns, out, scale);
}

}  // namespace eyrie
