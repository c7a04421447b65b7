// A warp takes eight rows after another of four vectors of channels, one a lane, or of eight, two a
// lane. What gates make of the maps' outputs they make of x by folded weights (block_map_cuda.cuh):
// each block sums its channels, and a second kernel the blocks' sums.
#include "core/early_launch.cuh"
#include "core/round.h"
#include "kernels/block_map/block_map_cuda.cuh"
#include "kernels/mma.cuh"

namespace eyrie {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kPairRows = 2 * 8;    // of a warp whose lanes have a pair
constexpr int kLaneVectors = 2;     // without gates
constexpr int kRowsPerThread = 16;  // of a tile, with gates
constexpr int kTileRows = 8 * kRowsPerThread;
constexpr int kUnroll = 2;  // pairs of rows that a thread has under way
// Blocks that a multiprocessor holds.
template <class T>
constexpr int kResident = sizeof(T) == 2 ? 3 : 2;

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }

// A lane's vectors of two rows, eight rows apart.
template <class T, int kWidth>
struct RowPair {
  Vector<T, kWidth> upper, lower;
};

// The maps of a lane's vector of channels, from `column` on.
template <class T, int kWidth, int kMaps>
struct LaneMaps {
  float weights[kMaps][kWidth / kBlock][kBlock][kBlock];

  __device__ __forceinline__ LaneMaps(const T* const (&w)[kMaps], int64_t column) {
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
#pragma unroll
      for (int b = 0; b < kWidth / kBlock; ++b) {
        LoadMap(w[m], column + b * kBlock, weights[m][b]);
      }
    }
  }

  __device__ __forceinline__ RowPair<T, kWidth> Of(int m, const RowPair<T, kWidth>& x) const {
    RowPair<T, kWidth> y;
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      float upper = 0, lower = 0;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        const float weight = weights[m][c / kBlock][c % kBlock][i];
        upper = fmaf(weight, x.upper[c / kBlock * kBlock + i], upper);
        lower = fmaf(weight, x.lower[c / kBlock * kBlock + i], lower);
      }
      y.upper.Set(c, upper);
      y.lower.Set(c, lower);
    }
    return y;
  }
};

// Products with those weights of eight gates, from `first` on: of each of two rows lane 4 q + t
// gets gates 2 t and 2 t + 1, over the channels of four lanes.
template <class T, int kWidth>
struct LaneGates {
  float weights[kGateTile][kWidth];

  template <int kMaps>
  __device__ __forceinline__ LaneGates(const GateWeights<T, kMaps>& from, int first,
                                       int64_t column) {
    static_assert(kWidth == kBlock);
#pragma unroll
    for (int g = 0; g < kGateTile; ++g) from.Fold(first + g, column, weights[g]);
  }

  __device__ __forceinline__ void Of(const RowPair<T, kWidth>& x, float (&sums)[4]) const {
#pragma unroll
    for (int g = 0; g < kGateTile; ++g) {
      float upper = 0, lower = 0;
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        upper = fmaf(weights[g][c], x.upper[c], upper);
        lower = fmaf(weights[g][c], x.lower[c], lower);
      }
      upper = QuadSum(upper);
      lower = QuadSum(lower);
      if (g / 2 == Lane() % 4) {
        sums[g % 2] = upper;
        sums[2 + g % 2] = lower;
      }
    }
  }
};

// In bfloat16 both are products of sixteen rows and sixteen channels, a block of each of four
// lanes, by mma.sync.m16n8k16 (PTX ISA, "Matrix fragments"): what a lane has of two rows is
// operand A as it lies.
template <int kWidth>
__device__ __forceinline__ void LoadOperand(const RowPair<__nv_bfloat16, kWidth>& x, int block,
                                            uint32_t (&a)[4]) {
  uint32_t upper[kWidth / 2], lower[kWidth / 2];
  memcpy(upper, &x.upper, sizeof(upper));
  memcpy(lower, &x.lower, sizeof(lower));
  a[0] = upper[2 * block];
  a[1] = lower[2 * block];
  a[2] = upper[2 * block + 1];
  a[3] = lower[2 * block + 1];
}

// Two products make each block's outputs, the first of them outputs 0 and 1: column 2 t + e of
// operand B has the weights of output e of the block of lanes 4 q + t, and zeros for the others'.
template <int kWidth, int kMaps>
struct LaneMaps<__nv_bfloat16, kWidth, kMaps> {
  uint32_t weights[kMaps][kWidth / kBlock][2][2];

  __device__ __forceinline__ LaneMaps(const __nv_bfloat16* const (&w)[kMaps], int64_t column) {
    const int output = Lane() / 4 % 2;
    const bool own = Lane() / 8 == Lane() % 4;
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
#pragma unroll
      for (int b = 0; b < kWidth / kBlock; ++b) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Vector<__nv_bfloat16, kBlock> line = {};
          if (own) {
            line = LoadVector<kBlock>(w[m] + (column + b * kBlock + 2 * j + output) * kBlock);
          }
          memcpy(weights[m][b][j], &line, sizeof(line));
        }
      }
    }
  }

  __device__ __forceinline__ RowPair<__nv_bfloat16, kWidth> Of(
      int m, const RowPair<__nv_bfloat16, kWidth>& x) const {
    RowPair<__nv_bfloat16, kWidth> y;
#pragma unroll
    for (int b = 0; b < kWidth / kBlock; ++b) {
      uint32_t a[4];
      LoadOperand(x, b, a);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float sums[4] = {};
        Mma(sums, a, weights[m][b][j][0], weights[m][b][j][1]);
        y.upper.SetPair(b * kBlock + 2 * j, sums[0], sums[1]);
        y.lower.SetPair(b * kBlock + 2 * j, sums[2], sums[3]);
      }
    }
    return y;
  }
};

// Gates are the columns; each weight is a sum of two bfloat16.
template <int kWidth>
struct LaneGates<__nv_bfloat16, kWidth> {
  static constexpr int kBlocks = kWidth / kBlock;
  uint32_t high[kBlocks][2], low[kBlocks][2];

  template <int kMaps>
  __device__ __forceinline__ LaneGates(const GateWeights<__nv_bfloat16, kMaps>& from, int first,
                                       int64_t column) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      float weights[kBlock];
      from.Fold(first + Lane() / 4, column + b * kBlock, weights);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        high[b][p] = Pack(weights[2 * p], weights[2 * p + 1]);
        low[b][p] = PackRest(weights[2 * p], weights[2 * p + 1]);
      }
    }
  }

  __device__ __forceinline__ void Of(const RowPair<__nv_bfloat16, kWidth>& x,
                                     float (&sums)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = 0.0f;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t a[4];
      LoadOperand(x, b, a);
      Mma(sums, a, low[b][0], low[b][1]);
      Mma(sums, a, high[b][0], high[b][1]);
    }
  }
};

template <class T, int kMaps>
struct ForwardTensors {
  GateWeights<T, kMaps> weights;
  const T* x;
  T* y[kMaps];
  float* gates;  // [gridDim.y, rows, gates]: of each block's channels
};

// Two vectors a lane: a warp's rows are whole cache lines of 128 bytes. The blocks' groups of rows
// take turns, so that the rows that the GPU has under way lie together.
template <class T, int kWidth, int kMaps>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    ForwardKernel(const ForwardTensors<T, kMaps> tensors, int64_t rows) {
  const int width = tensors.weights.width;
  const int warp = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
  const int first = warp * kLaneVectors * 4 + Lane() % 4;
  // Vectors past the end have zeros, the weights of the last ones, and are not stored.
  const bool active[kLaneVectors] = {first * kWidth < width, (first + 4) * kWidth < width};
  const int column[kLaneVectors] = {min(first * kWidth, width - kWidth),
                                    min((first + 4) * kWidth, width - kWidth)};
  const LaneMaps<T, kWidth, kMaps> maps[kLaneVectors] = {{tensors.weights.w, column[0]},
                                                         {tensors.weights.w, column[1]}};
#pragma unroll 1
  for (int64_t group = int64_t{blockIdx.x} * kPairRows; group < rows;
       group += int64_t{gridDim.x} * kPairRows) {
    const int64_t row = group + Lane() / 4, upper = row * width, lower = upper + 8 * width;
    const bool is_row[2] = {row < rows, row + 8 < rows};
    RowPair<T, kWidth> x[kLaneVectors];
#pragma unroll
    for (int v = 0; v < kLaneVectors; ++v) {
      x[v] = {};
      const T* from = tensors.x + column[v];
      if (active[v] && is_row[0]) x[v].upper = LoadVector<kWidth>(from + upper);
      if (active[v] && is_row[1]) x[v].lower = LoadVector<kWidth>(from + lower);
    }
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      RowPair<T, kWidth> y[kLaneVectors];
#pragma unroll
      for (int v = 0; v < kLaneVectors; ++v) y[v] = maps[v].Of(m, x[v]);
#pragma unroll
      for (int v = 0; v < kLaneVectors; ++v) {
        if (active[v] && is_row[0]) StoreVector(tensors.y[m] + upper + column[v], y[v].upper);
      }
#pragma unroll
      for (int v = 0; v < kLaneVectors; ++v) {
        if (active[v] && is_row[1]) StoreVector(tensors.y[m] + lower + column[v], y[v].lower);
      }
    }
  }
}

// A block's warps lie side by side, over `chunk` rows, a tile after another.
template <class T, int kWidth, int kMaps>
__global__ void __launch_bounds__(kThreads, kResident<T>)
    GatedForwardKernel(const ForwardTensors<T, kMaps> tensors, int64_t rows, int64_t chunk) {
  LetNextStart();
  __shared__ float shared[kWarps][kTileRows][kGateTile];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int width = tensors.weights.width, gates = tensors.weights.gates;
  const int64_t own = (int64_t{blockIdx.y} * 32 + warp * 4 + Lane() % 4) * kWidth;
  // Lanes past the end have zeros, the weights of the last ones, and store nothing.
  const bool active = own < width;
  const int64_t column = active ? own : width - kWidth;
  const int64_t begin = int64_t{blockIdx.x} * chunk, end = min(rows, begin + chunk);
  const LaneMaps<T, kWidth, kMaps> maps(tensors.weights.w, column);

  // The outputs of a tile, and its products with eight gates.
  const auto take = [&](int64_t tile, const LaneGates<T, kWidth>& of_gates, bool outputs) {
#pragma unroll 1
    for (int k = 0; k < kRowsPerThread; k += 2 * kUnroll) {
      if (tile + k * 8 >= end) return;
      const int64_t row = tile + k * 8 + Lane() / 4, start = row * width + column;
      const auto is_row = [&](int u) { return active && row + u * 8 < end; };
      const auto load = [&](int u) {
        Vector<T, kWidth> x = {};
        if (is_row(u)) x = LoadVector<kWidth>(tensors.x + start + u * 8 * width);
        return x;
      };
      RowPair<T, kWidth> x[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) x[u] = {load(2 * u), load(2 * u + 1)};
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float sums[4];
        of_gates.Of(x[u], sums);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          Vector<float, 2> pair;
          pair.SetPair(0, sums[2 * r], sums[2 * r + 1]);
          StoreVector(&shared[warp][(k + 2 * u + r) * 8 + Lane() / 4][Lane() % 4 * 2], pair);
        }
      }
      if (!outputs) continue;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int m = 0; m < kMaps; ++m) {
          const RowPair<T, kWidth> y = maps.Of(m, x[u]);
          T* to = tensors.y[m] + start + 2 * u * 8 * width;
          if (is_row(2 * u)) StoreVector(to, y.upper);
          if (is_row(2 * u + 1)) StoreVector(to + 8 * width, y.lower);
        }
      }
    }
  };
  int first = 0;
  // Once for every eight gates, and the first time also for the outputs.
#pragma unroll 1
  do {
    const LaneGates<T, kWidth> of_gates(tensors.weights, first, column);
#pragma unroll 1
    for (int64_t tile = begin; tile < end; tile += kTileRows) {
      take(tile, of_gates, first == 0);
      __syncthreads();
      float* to = tensors.gates + (int64_t{blockIdx.y} * rows + tile) * gates + first;
      for (int s = thread; s < kTileRows * kGateTile; s += kThreads) {
        const int row = s / kGateTile, gate = s % kGateTile;
        if (tile + row >= end || first + gate >= gates) continue;
        float total = 0;
#pragma unroll
        for (int other = 0; other < kWarps; ++other) total += shared[other][row][gate];
        to[int64_t{row} * gates + gate] = total;
      }
      __syncthreads();
    }
    first += kGateTile;
  } while (first < gates);
}

// out [size] := or += the sum over parts [parts, size], in their order.
__global__ void __launch_bounds__(kThreads)
    AddPartsKernel(const float* parts, int count, int64_t size, bool accumulate,
                   float* __restrict__ out) {
  AwaitEarlier();
  constexpr int kUnroll = 8;  // parts that a thread has under way
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= size) return;
  float sum = accumulate ? out[at] : 0.0f;
#pragma unroll 1
  for (int part = 0; part < count; part += kUnroll) {
    float values[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (part + u < count) values[u] = parts[(part + u) * size + at];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += values[u];
  }
  out[at] = sum;
}

}  // namespace

void BlockMapForwardCuda(const BlockMapForwardArgs& args) {
  const char* kernel = "BlockMapForward";
  const int64_t width = args.x.dim(-1);
  if (args.x.size() == 0) return;
  const int64_t rows = args.x.size() / width;
  const bool gated = args.gates.defined();
  const int64_t gates = gated ? args.gates.dim(-1) : 0;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    WithMaps(args.maps, [&](auto maps) {
      constexpr int kMaps = decltype(maps)::value, kWidth = kVectorWidth<T>;
      ForwardTensors<T, kMaps> tensors{
          .weights = {.gates = static_cast<int>(gates), .width = static_cast<int>(width)},
          .x = args.x.data<T>()};
      if (gated) tensors.gates = args.workspace.data<float>();
      CheckAligned(kernel, tensors.x);
      bool vectors = FitsVectors<T>(tensors.x, width);
      for (int m = 0; m < kMaps; ++m) {
        const BlockMapForwardArgs::Map& map = args.maps[m];
        tensors.weights.w[m] = map.w.data<T>();
        tensors.y[m] = map.y.data<T>();
        CheckAligned(kernel, tensors.weights.w[m]);
        CheckAligned(kernel, tensors.y[m]);
        vectors = vectors && FitsVectors<T>(tensors.y[m], width);
        if (!gated) continue;
        tensors.weights.gates_w[m] = map.gates_w.data<T>();
        CheckAligned(kernel, tensors.weights.gates_w[m]);
      }
      // As many chunks of rows as the GPU takes at once.
      const auto most_chunks = [](unsigned parts) {
        return std::max<int64_t>(1, kResident<T> * kPlannedMultiprocessors / parts);
      };
      const int lane_columns = 32 * (vectors ? kWidth : kBlock);
      if (!gated) {
        const unsigned parts = Pieces(width, kLaneVectors * lane_columns);
        const auto chunks = std::min(most_chunks(parts), CeilDiv(rows, int64_t{kPairRows}));
        Launch(kernel, vectors ? ForwardKernel<T, kWidth, kMaps> : ForwardKernel<T, kBlock, kMaps>,
               dim3(static_cast<unsigned>(chunks), parts), kThreads, 0, tensors, rows);
        return;
      }
      static_assert(32 * kBlock == kBlockMapGateColumns);
      const unsigned parts = Pieces(width, lane_columns);
      const int64_t chunk = RoundUp(CeilDiv(rows, most_chunks(parts)), kUnroll * kPairRows);
      Launch(kernel,
             vectors ? GatedForwardKernel<T, kWidth, kMaps> : GatedForwardKernel<T, kBlock, kMaps>,
             dim3(Pieces(rows, chunk), parts), kThreads, 0, tensors, rows, chunk);
      LaunchEarly(kernel, AddPartsKernel, Pieces(rows * gates, kThreads), kThreads, 0,
                  tensors.gates, static_cast<int>(parts), rows * gates, args.accumulate_gates,
                  args.gates.data<float>());
    });
  });
}

}  // namespace eyrie
