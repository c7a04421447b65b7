// A thread takes one row after another of its vector of channels.
#include "kernels/block_map/block_map_cuda.cuh"

namespace eyrie {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRowsPerThread = 16;  // so many pay for the loading of the maps

template <class T, int kMaps>
struct ForwardTensors {
  const T *x, *w[kMaps];
  T* y[kMaps];
};

// kWidth channels a thread, which holds their maps in registers; a block of threads covers kWarps *
// kRowsPerThread rows of 32 vectors.
template <class T, int kWidth, int kMaps>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(const ForwardTensors<T, kMaps> tensors, int64_t rows, int64_t width) {
  constexpr int kBlocks = kWidth / kBlock;
  constexpr int kUnroll = 4;  // rows that a thread has under way
  const int64_t column = (int64_t{blockIdx.y} * 32 + threadIdx.x % 32) * kWidth;
  if (column >= width) return;
  float map[kMaps][kBlocks][kBlock][kBlock];
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
#pragma unroll
    for (int g = 0; g < kBlocks; ++g) LoadMap(tensors.w[m], column + g * kBlock, map[m][g]);
  }

  const int64_t first = int64_t{blockIdx.x} * (kWarps * kRowsPerThread) + threadIdx.x / 32;
#pragma unroll 1
  for (int k = 0; k < kRowsPerThread; k += kUnroll) {
    Vector<T, kWidth> in[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = first + (k + u) * kWarps;
      if (row < rows) in[u] = LoadVector<kWidth>(tensors.x + row * width + column);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = first + (k + u) * kWarps;
      if (row >= rows) continue;
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        Vector<T, kWidth> out;
#pragma unroll
        for (int c = 0; c < kWidth; c += 2) {
          float sum[2] = {};
#pragma unroll
          for (int i = 0; i < kBlock; ++i) {
            const float value = in[u][c / kBlock * kBlock + i];
            sum[0] = fmaf(map[m][c / kBlock][c % kBlock][i], value, sum[0]);
            sum[1] = fmaf(map[m][c / kBlock][c % kBlock + 1][i], value, sum[1]);
          }
          out.SetPair(c, sum[0], sum[1]);
        }
        StoreVector(tensors.y[m] + row * width + column, out);
      }
    }
  }
}

}  // namespace

void BlockMapForwardCuda(const BlockMapForwardArgs& args) {
  const char* kernel = "BlockMapForward";
  const int64_t width = args.x.dim(-1);
  if (args.x.size() == 0) return;
  const int64_t rows = args.x.size() / width;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    WithMaps(args.maps, [&](auto maps) {
      constexpr int kMaps = decltype(maps)::value, kWidth = kVectorWidth<T>;
      ForwardTensors<T, kMaps> tensors{.x = args.x.data<T>()};
      CheckAligned(kernel, tensors.x);
      bool vectors = FitsVectors<T>(tensors.x, width);
      for (int m = 0; m < kMaps; ++m) {
        tensors.w[m] = args.maps[m].w.template data<T>();
        tensors.y[m] = args.maps[m].y.template data<T>();
        CheckAligned(kernel, tensors.w[m]);
        CheckAligned(kernel, tensors.y[m]);
        vectors = vectors && FitsVectors<T>(tensors.y[m], width);
      }
      const dim3 grid(Pieces(rows, kWarps * kRowsPerThread),
                      Pieces(width, 32 * (vectors ? kWidth : kBlock)));
      Launch(kernel, vectors ? ForwardKernel<T, kWidth, kMaps> : ForwardKernel<T, kBlock, kMaps>,
             grid, kThreads, 0, tensors, rows, width);
    });
  });
}

}  // namespace eyrie
