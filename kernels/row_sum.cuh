// Sums over rows on a GPU, in an order that depends on shapes alone: for gradients of parameters,
// from the partial sums of many blocks.
#pragma once

#include "core/early_launch.cuh"
#include "core/round.h"
#include "kernels/cuda_math.cuh"

namespace eyrie {

inline constexpr int kRowSumThreads = 8;  // that share the rows of one column

template <class Take>
__global__ void RowSumKernel(const float* x, int64_t rows, int64_t columns, Take take) {
  AwaitEarlier();
  __shared__ float shares[kRowSumThreads][32];
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x;
  float sum = 0;
  if (c < columns) {
#pragma unroll 8
    for (int64_t row = threadIdx.y; row < rows; row += kRowSumThreads) sum += x[row * columns + c];
  }
  shares[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= columns) return;
  for (int i = 1; i < kRowSumThreads; ++i) sum += shares[i][threadIdx.x];
  take(c, sum);
}

// take(c, sum over rows of x[row, c]) for each c < columns. `take` is device code.
template <class Take>
void RowSumCuda(const char* name, const float* x, int64_t rows, int64_t columns, const Take& take) {
  LaunchEarly(name, RowSumKernel<Take>, dim3(static_cast<unsigned>(CeilDiv(columns, 32))),
              dim3(32, kRowSumThreads), 0, x, rows, columns, take);
}

// out[c] += scale(c) * sum over rows of x[row, c]. `scale` is device code.
template <class Scale>
struct AddScaled {
  __device__ void operator()(int64_t c, float sum) const { out[c] += scale(c) * sum; }
  float* out;
  Scale scale;
};
template <class Scale>
void AddRowSumCuda(const char* name, const float* x, int64_t rows, int64_t columns, float* out,
                   const Scale& scale) {
  RowSumCuda(name, x, rows, columns, AddScaled<Scale>{out, scale});
}

}  // namespace eyrie
