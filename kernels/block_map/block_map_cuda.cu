// A thread holds the maps of the blocks under its vector of channels in registers, and takes one
// row after another.
#include "kernels/block_map/block_map_cuda.h"
#include "kernels/column_sum.cuh"

namespace eyrie {
namespace {

constexpr int kBlock = static_cast<int>(kBlockMapWidth);
constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kUnroll = 4;          // rows that a thread has under way
constexpr int kRowsPerThread = 16;  // so many pay for the loading of the maps

// kWidth channels a thread; a block of threads covers kWarps * kRowsPerThread rows of 32 vectors.
template <class T, int kWidth, bool kTransposed, bool kAccumulate>
__global__ void __launch_bounds__(kThreads)
    BlockMapKernel(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y,
                   int64_t rows, int64_t width) {
  constexpr int kMaps = kWidth / kBlock;
  const int64_t column = (int64_t{blockIdx.y} * 32 + threadIdx.x % 32) * kWidth;
  if (column >= width) return;
  float map[kMaps][kBlock][kBlock];  // out by in
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
#pragma unroll
    for (int a = 0; a < kBlock; ++a) {
      const Vector<T, kBlock> line = LoadVector<kBlock>(w + (column + m * kBlock + a) * kBlock);
#pragma unroll
      for (int b = 0; b < kBlock; ++b) (kTransposed ? map[m][b][a] : map[m][a][b]) = line[b];
    }
  }

  const int64_t first = int64_t{blockIdx.x} * (kWarps * kRowsPerThread) + threadIdx.x / 32;
#pragma unroll 1
  for (int k = 0; k < kRowsPerThread; k += kUnroll) {
    Vector<T, kWidth> in[kUnroll], before[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = first + (k + u) * kWarps;
      if (row >= rows) continue;
      in[u] = LoadVector<kWidth>(x + row * width + column);
      if constexpr (kAccumulate) before[u] = LoadVector<kWidth>(y + row * width + column);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = first + (k + u) * kWarps;
      if (row >= rows) continue;
      Vector<T, kWidth> out;
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        float sum[kBlock];
#pragma unroll
        for (int o = 0; o < kBlock; ++o) {
          sum[o] = 0;
          if constexpr (kAccumulate) sum[o] = before[u][m * kBlock + o];
#pragma unroll
          for (int i = 0; i < kBlock; ++i) {
            sum[o] = fmaf(map[m][o][i], in[u][m * kBlock + i], sum[o]);
          }
        }
#pragma unroll
        for (int o = 0; o < kBlock; o += 2) out.SetPair(m * kBlock + o, sum[o], sum[o + 1]);
      }
      StoreVector(y + row * width + column, out);
    }
  }
}

// partial [gridDim.x, 4 * width] := the products of the chunk's rows, summed; a block's warps take
// its rows in turn, and their sums are then added up.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    BlockMapWeightGradKernel(const T* __restrict__ x, const T* __restrict__ dy, int64_t rows,
                             int64_t chunk, int64_t width, float* __restrict__ partial) {
  constexpr int kSums = kWidth * kBlock, kPitch = kSums + 1;  // a lane's; odd, against conflicts
  __shared__ float shared[kWarps][32 * kPitch];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_column = int64_t{blockIdx.y} * 32 * kWidth;
  const int64_t column = first_column + lane * kWidth;
  const int64_t begin = int64_t{blockIdx.x} * chunk, end = min(rows, begin + chunk);

  float sum[kSums] = {};
  if (column < width) {
#pragma unroll 1
    for (int64_t row = begin + warp; row < end; row += kWarps * kUnroll) {
      Vector<T, kWidth> in[kUnroll], out[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = row + u * kWarps;
        if (at >= end) continue;
        in[u] = LoadVector<kWidth>(x + at * width + column);
        out[u] = LoadVector<kWidth>(dy + at * width + column);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (row + u * kWarps >= end) continue;
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
#pragma unroll
          for (int i = 0; i < kBlock; ++i) {
            float& cell = sum[c * kBlock + i];
            cell = fmaf(out[u][c], in[u][c / kBlock * kBlock + i], cell);
          }
        }
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) shared[warp][lane * kPitch + s] = sum[s];
  __syncthreads();

  const int64_t weights = width * kBlock, first_weight = first_column * kBlock;
  for (int s = static_cast<int>(threadIdx.x); s < 32 * kSums; s += kThreads) {
    if (first_weight + s >= weights) break;
    float total = 0;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      total += shared[other][s / kSums * kPitch + s % kSums];
    }
    partial[int64_t{blockIdx.x} * weights + first_weight + s] = total;
  }
}

// Calls body(constant) with the channels of a thread: a whole vector of 16 bytes where rows hold
// such, and otherwise one block.
template <class T, class Body>
void WithWidth(const char* kernel, int64_t width, std::initializer_list<const T*> pointers,
               const Body& body) {
  if (AllFitVectors<T>(width, pointers)) {
    body(std::integral_constant<int, kVectorWidth<T>>{});
    return;
  }
  for (const T* pointer : pointers) {
    EYRIE_CHECK(Aligned<kBlock>(pointer), kernel, ": memory is not aligned for blocks of four");
  }
  body(std::integral_constant<int, kBlock>{});
}

}  // namespace

void BlockMapCuda(const BlockMapArgs& args) {
  const char* kernel = "BlockMap";
  const int64_t width = args.x.dim(-1);
  if (args.x.size() == 0) return;
  const int64_t rows = args.x.size() / width;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const T *x = args.x.data<T>(), *w = args.w.data<T>();
    T* y = args.y.data<T>();
    WithWidth<T>(kernel, width, {x, w, y}, [&](auto vector) {
      constexpr int kWidth = decltype(vector)::value;
      const auto body = args.transposed
                            ? (args.accumulate ? BlockMapKernel<T, kWidth, true, true>
                                               : BlockMapKernel<T, kWidth, true, false>)
                            : (args.accumulate ? BlockMapKernel<T, kWidth, false, true>
                                               : BlockMapKernel<T, kWidth, false, false>);
      Launch(kernel, body, dim3(Pieces(rows, kWarps * kRowsPerThread), Pieces(width, 32 * kWidth)),
             kThreads, 0, x, w, y, rows, width);
    });
  });
}

void BlockMapWeightGradCuda(const BlockMapWeightGradArgs& args) {
  const char* kernel = "BlockMapWeightGrad";
  const int64_t width = args.x.dim(-1);
  if (args.x.size() == 0) return;
  const int64_t rows = args.x.size() / width, chunk = ColumnSumChunk(rows, width);
  const unsigned chunks = Pieces(rows, chunk);
  float* partial = args.workspace.data<float>();
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const T *x = args.x.data<T>(), *dy = args.dy.data<T>();
    WithWidth<T>(kernel, width, {x, dy}, [&](auto vector) {
      constexpr int kWidth = decltype(vector)::value;
      Launch(kernel, BlockMapWeightGradKernel<T, kWidth>, dim3(chunks, Pieces(width, 32 * kWidth)),
             kThreads, 0, x, dy, rows, chunk, width, partial);
    });
  });
  AddColumnSums(kernel, partial, chunks, width * kBlock, args.dw.data<float>());
}

}  // namespace eyrie
