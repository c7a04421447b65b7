// Sums over the rows of a matrix, in an order that depends on its shape alone: first the rows of
// each of some chunks, then the chunks' sums.
#pragma once

#include "core/early_launch.cuh"
#include "kernels/cuda_math.cuh"
#include "kernels/cuda_partition.h"

namespace eyrie {

// The end of a sum over rows that the warps of a block share, whose lanes have kWidth columns each:
// take(c, total) for each of the block's columns c < columns, summed over the warps in their order.
// `shared` may be written again after the next barrier.
template <int kWidth, int kWarps, class Take>
__device__ __forceinline__ void AddWarps(const float (&sum)[kWidth],
                                         float (&shared)[kWarps][32 * kWidth], int64_t columns,
                                         const Take& take) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) shared[warp][lane * kWidth + i] = sum[i];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < 32 * kWidth; c += 32 * kWarps) {
    if (c >= columns) break;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared[w][c];
    take(c, total);
  }
}

// A block takes rows [chunk * blockIdx.x, ...) of 32 vectors of columns, its warps row by row in
// turn, and then adds up what its warps have. out [gridDim.x, width] := the sums of the chunks, or,
// with kAdd and one chunk, out [width] += the sums.
// Blocks of 8 warps run four at a time on a multiprocessor.
template <class T, int kWidth, int kWarps, bool kAdd>
__global__ void __launch_bounds__(32 * kWarps, 32 / kWarps)
    ColumnSumKernel(const T* x, int64_t rows, int64_t chunk, int64_t width,
                    float* __restrict__ out) {
  LetNextStart();
  AwaitEarlier();
  constexpr int kColumns = 32 * kWidth, kUnroll = 4;
  __shared__ float sums[kWarps][kColumns];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_column = int64_t{blockIdx.y} * kColumns;
  const int64_t column = first_column + lane * kWidth;
  const int64_t begin = int64_t{blockIdx.x} * chunk, end = min(rows, begin + chunk);

  float sum[kWidth] = {};
  if (column < width) {
    for (int64_t row = begin + warp; row < end; row += kWarps * kUnroll) {
      Vector<T, kWidth> values[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = row + u * kWarps;
        if (at < end) values[u] = LoadVector<kWidth>(x + at * width + column);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (row + u * kWarps >= end) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum[i] += values[u][i];
      }
    }
  }

  AddWarps(sum, sums, width - first_column, [&](int c, float total) {
    if constexpr (kAdd) {
      out[first_column + c] += total;
    } else {
      out[int64_t{blockIdx.x} * width + first_column + c] = total;
    }
  });
}

// out[c] += sum over rows of x[row, c], for few rows: the second stage.
inline void AddColumnSums(const char* name, const float* x, int64_t rows, int64_t width,
                          float* out) {
  constexpr int kWarps = 32;
  LaunchEarly(name, ColumnSumKernel<float, 1, kWarps, true>, dim3(1, Pieces(width, 32)),
              32 * kWarps, 0, x, rows, rows, width, out);
}

}  // namespace eyrie
