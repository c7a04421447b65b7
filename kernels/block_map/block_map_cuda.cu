// A thread takes one row after another of its vector of channels.
#include "kernels/block_map/block_map_cuda.h"
#include "kernels/column_sum.cuh"

namespace eyrie {
namespace {

constexpr int kBlock = static_cast<int>(kBlockMapWidth);
constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRowsPerThread = 16;  // so many pay for the loading of the maps

// The block of weights from channel `column` on, out by in.
template <class T>
__device__ __forceinline__ void LoadMap(const T* w, int64_t column, float (&map)[kBlock][kBlock]) {
#pragma unroll
  for (int o = 0; o < kBlock; ++o) {
    const Vector<T, kBlock> line = LoadVector<kBlock>(w + (column + o) * kBlock);
#pragma unroll
    for (int i = 0; i < kBlock; ++i) map[o][i] = line[i];
  }
}

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

template <class T, int kMaps>
struct BackwardTensors {
  const T *x, *w[kMaps], *dy[kMaps], *gates_w[kMaps], *dgates;
  T* dx;
  float* dw[kMaps];  // each [gridDim.x, 4 * width]: the products of each chunk's rows, summed
};

// A thread takes one block of channels; a block's warps take its chunk's rows in turn, and their
// sums are then added up. The sums and several rows fill its registers, so that the maps and the
// gates' weights are read from the cache again for every so many rows.
template <class T, int kMaps, bool kAccumulate>
__global__ void __launch_bounds__(kThreads, 2)
    BackwardKernel(const BackwardTensors<T, kMaps> tensors, int rows, int chunk, int width,
                   int gates) {
  constexpr int kUnroll = 8 / static_cast<int>(sizeof(T));     // rows that a thread has under way
  constexpr int kWeights = kBlock * kBlock;                    // of a block of channels and one map
  constexpr int kSums = kMaps * kWeights, kPitch = kSums + 1;  // a lane's; odd, against conflicts
  alignas(16) __shared__ float shared[kWarps][32 * kPitch];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_column = static_cast<int>(blockIdx.y) * 32 * kBlock;
  const bool active = first_column + lane * kBlock < width;
  // Lanes past the end do what the last one does, and store nothing.
  const int column = min(first_column + lane * kBlock, width - kBlock);
  const int begin = static_cast<int>(blockIdx.x) * chunk, end = min(rows, begin + chunk);

  float sum[kMaps][kBlock][kBlock] = {};  // out by in, like the maps
  // Takes rows first, first + kWarps, ..., as many as `count` says.
  const auto take = [&](auto count, int first) {
    constexpr int kRows = decltype(count)::value;
    const int64_t start = int64_t{first} * width + column;
    Vector<T, kBlock> x[kRows], dy[kMaps][kRows];
    [[maybe_unused]] Vector<T, kBlock> dx[kRows];  // what is added to
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t at = start + u * kWarps * width;
      x[u] = LoadVector<kBlock>(tensors.x + at);
#pragma unroll
      for (int m = 0; m < kMaps; ++m) dy[m][u] = LoadVector<kBlock>(tensors.dy[m] + at);
      if constexpr (kAccumulate) dx[u] = LoadVector<kBlock>(tensors.dx + at);
    }

    float result[kRows][kBlock] = {};
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      // The gates' share of the gradient first, while those are under way: dgates [gate, row] of
      // 32 numbers pass through the warp's shared memory.
      constexpr int kGates = 32 / kRows;
      float* dgates = shared[warp];
      float gradient[kRows][kBlock] = {};
#pragma unroll 1
      for (int before = 0; before < gates; before += kGates) {
        const int gate = before + lane / kRows;
        __syncwarp();
        if (gate < gates) {
          dgates[lane] =
              ToFloat(tensors.dgates[int64_t{first + lane % kRows * kWarps} * gates + gate]);
        }
        __syncwarp();
        const T* weights = tensors.gates_w[m] + int64_t{before} * width + column;
#pragma unroll 2
        for (int g = 0; g < min(kGates, gates - before); ++g, weights += width) {
          const Vector<float, kRows> d = LoadVector<kRows>(dgates + g * kRows);
          const Vector<T, kBlock> w = LoadVector<kBlock>(weights);
#pragma unroll
          for (int u = 0; u < kRows; ++u) {
#pragma unroll
            for (int o = 0; o < kBlock; ++o) gradient[u][o] = fmaf(d[u], w[o], gradient[u][o]);
          }
        }
      }
      if constexpr (kAccumulate) {
        if (m == 0) {
#pragma unroll
          for (int u = 0; u < kRows; ++u) {
#pragma unroll
            for (int i = 0; i < kBlock; ++i) result[u][i] = dx[u][i];
          }
        }
      }
#pragma unroll
      for (int o = 0; o < kBlock; ++o) {
        const Vector<T, kBlock> map = LoadVector<kBlock>(tensors.w[m] + (column + o) * kBlock);
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
          const float d = dy[m][u][o] + gradient[u][o];
#pragma unroll
          for (int i = 0; i < kBlock; ++i) {
            result[u][i] = fmaf(map[i], d, result[u][i]);
            sum[m][o][i] = fmaf(d, x[u][i], sum[m][o][i]);
          }
        }
      }
    }
    if (!active) return;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      Vector<T, kBlock> out;
#pragma unroll
      for (int i = 0; i < kBlock; i += 2) out.SetPair(i, result[u][i], result[u][i + 1]);
      StoreVector(tensors.dx + start + u * kWarps * width, out);
    }
  };
  int row = begin + warp;
#pragma unroll 1
  for (; row + (kUnroll - 1) * kWarps < end; row += kUnroll * kWarps) {
    take(std::integral_constant<int, kUnroll>{}, row);
  }
#pragma unroll 1
  for (; row < end; row += kWarps) take(std::integral_constant<int, 1>{}, row);
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      shared[warp][lane * kPitch + m * kWeights + w] = sum[m][w / kBlock][w % kBlock];
    }
  }
  __syncthreads();

  // Of each map, the weights under the block's channels lie in a row, lane by lane.
  const int64_t weights = int64_t{width} * kBlock, first_weight = int64_t{first_column} * kBlock;
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
    for (int s = static_cast<int>(threadIdx.x); s < 32 * kWeights; s += kThreads) {
      if (first_weight + s >= weights) break;
      float total = 0;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        total += shared[other][s / kWeights * kPitch + m * kWeights + s % kWeights];
      }
      tensors.dw[m][int64_t{blockIdx.x} * weights + first_weight + s] = total;
    }
  }
}

// Calls body(constant) with the number of maps.
template <class Maps, class Body>
void WithMaps(const Maps& maps, const Body& body) {
  if (maps.size() == 1) {
    body(std::integral_constant<int, 1>{});
  } else {
    body(std::integral_constant<int, static_cast<int>(kMostBlockMaps)>{});
  }
}

template <class T>
void CheckAligned(const char* kernel, const T* pointer) {
  EYRIE_CHECK(Aligned<kBlock>(pointer), kernel, ": memory is not aligned for blocks of four");
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

void BlockMapBackwardCuda(const BlockMapBackwardArgs& args) {
  const char* kernel = "BlockMapBackward";
  const int64_t width = args.x.dim(-1);
  if (args.x.size() == 0) return;
  const int64_t rows = args.x.size() / width, chunk = ColumnSumChunk(rows, width);
  const unsigned chunks = Pieces(rows, chunk);
  const int64_t shares = chunks * width * kBlock;  // of one map
  const bool gated = args.dgates.defined();
  const int gates = gated ? static_cast<int>(args.dgates.dim(-1)) : 0;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    WithMaps(args.maps, [&](auto maps) {
      constexpr int kMaps = decltype(maps)::value;
      BackwardTensors<T, kMaps> tensors{.x = args.x.data<T>(), .dx = args.dx.data<T>()};
      CheckAligned(kernel, tensors.x);
      CheckAligned(kernel, tensors.dx);
      if (gated) tensors.dgates = args.dgates.data<T>();
      for (int m = 0; m < kMaps; ++m) {
        tensors.w[m] = args.maps[m].w.template data<T>();
        tensors.dy[m] = args.maps[m].dy.template data<T>();
        tensors.dw[m] = args.workspace.data<float>() + m * shares;
        CheckAligned(kernel, tensors.w[m]);
        CheckAligned(kernel, tensors.dy[m]);
        if (!gated) continue;
        tensors.gates_w[m] = args.maps[m].gates_w.template data<T>();
        CheckAligned(kernel, tensors.gates_w[m]);
      }
      Launch(kernel,
             args.accumulate ? BackwardKernel<T, kMaps, true> : BackwardKernel<T, kMaps, false>,
             dim3(chunks, Pieces(width, 32 * kBlock)), kThreads, 0, tensors, static_cast<int>(rows),
             static_cast<int>(chunk), static_cast<int>(width), gates);
    });
  });
  for (size_t m = 0; m < args.maps.size(); ++m) {
    AddColumnSums(kernel, args.workspace.data<float>() + static_cast<int64_t>(m) * shares, chunks,
                  width * kBlock, args.maps[m].dw.data<float>());
  }
}

}  // namespace eyrie
