// A tile of rows and channels after another: products of gradients and inputs stay in registers to
// the end of a block's chunk of rows, and so do those of gates. Tiles come through shared memory,
// some of them ahead, as the registers are full.
#include "kernels/block_map/block_map_gates.cuh"
#include "kernels/column_sum.cuh"

namespace eyrie {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kTileBlocks = 32, kTileColumns = kTileBlocks * kBlock;  // of channels
constexpr int kParts = kThreads / kTileBlocks;                        // threads of one such block
constexpr int kTileRows = kParts * kLaneRows;
static_assert(kTileColumns == kBlockMapTileColumns && kTileRows == kBlockMapTileRows);
// As many as an A100's shared memory has room for.
template <class T>
constexpr int kStagesOf = sizeof(T) == 2 ? 3 : 2;
constexpr int kPitch = kTileColumns + kBlock;  // of a row in a stage, against conflicts

// What a stage holds of each tensor, in elements.
template <int kMaps, bool kAccumulate>
constexpr int kStageTensors = 1 + kMaps + (kAccumulate ? 1 : 0);
constexpr int kStageOfTensor = kTileRows * kPitch;

template <class T, int kMaps>
struct BackwardTensors {
  GateWeights<T, kMaps> weights;
  const T *x, *dy[kMaps], *dgates;
  T* dx;
  float* sums;  // [gridDim.x, BlockMapSums()]: those of each chunk's rows
};

// The four warps of a row cover a tile's channels, two such rows its rows. The sums and four rows
// fill a thread's registers, so that the maps are read from the cache again for every tile.
template <class T, int kMaps, bool kAccumulate>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 1)
    BackwardKernel(const BackwardTensors<T, kMaps> tensors, int rows, int chunk) {
  constexpr int kWeights = kBlock * kBlock;  // of a block of channels and one map
  constexpr int kSums = kMaps * kWeights, kSumPitch = kSums + 1;  // a thread's; odd likewise
  constexpr int kTensors = kStageTensors<kMaps, kAccumulate>, kStage = kTensors * kStageOfTensor;
  constexpr int kStages = kStagesOf<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const T* stages = reinterpret_cast<const T*>(memory);
  float* shared = reinterpret_cast<float*>(memory);  // when all tiles are done
  static_assert(kParts * kTileBlocks * kSumPitch * sizeof(float) <= kStages * kStage * sizeof(T));
  static_assert(2 * kGateTile * kPitch * sizeof(float) <= kStages * kStage * sizeof(T));

  const int width = tensors.weights.width, gates = tensors.weights.gates;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int block = warp % 4 * 8 + lane / 4;  // which of the tile's blocks of channels
  const int part = warp / 4 * 4 + lane % 4;   // which four of its rows
  const int first_column = static_cast<int>(blockIdx.y) * kTileColumns;
  const bool active = first_column + block * kBlock < width;
  // Threads past the end do what those of the last block do, and store nothing.
  const int column = min(first_column + block * kBlock, width - kBlock);
  const int begin = static_cast<int>(blockIdx.x) * chunk, end = min(rows, begin + chunk);
  float* chunk_sums = tensors.sums + blockIdx.x * (int64_t{width} * (kMaps * kBlock + gates));

  const FoldedGates<T> folded(tensors.weights, 0, column);
  float sum[kMaps][kBlock][kBlock] = {};  // out by in, like the maps
  GateSums<T> gate_sums;

  // Starts to copy the tile of rows `tile` and on: warps take rows in turn, zeros where none is.
  const auto fetch = [&](int tile, int stage) {
    if (tile < end) {
      const int copied = min(first_column + lane * kBlock, width - kBlock);
      const bool exists = first_column + lane * kBlock < width;
      const auto copy = [&](int tensor, const T* from) {
#pragma unroll
        for (int i = 0; i < kTileRows / kWarps; ++i) {
          const int r = i * kWarps + warp, row = min(tile + r, end - 1);
          const uint32_t to = SharedAddress(stages + stage * kStage + tensor * kStageOfTensor +
                                            r * kPitch + lane * kBlock);
          CopyAsync<sizeof(T) * kBlock>(to, from + int64_t{row} * width + copied,
                                        exists && tile + r < end);
        }
      };
      copy(0, tensors.x);
#pragma unroll
      for (int m = 0; m < kMaps; ++m) copy(1 + m, tensors.dy[m]);
      if constexpr (kAccumulate) copy(1 + kMaps, tensors.dx);
    }
    CommitCopies();
  };
  // The tile of rows `tile` and on.
  const auto take = [&](int tile, int stage) {
    const int row = tile + part * kLaneRows;
    const auto load = [&](int tensor, Vector<T, kBlock>(&to)[kLaneRows]) {
      const T* from = stages + stage * kStage + tensor * kStageOfTensor +
                      part * kLaneRows * kPitch + block * kBlock;
#pragma unroll
      for (int u = 0; u < kLaneRows; ++u) to[u] = LoadVector<kBlock>(from + u * kPitch);
    };
    Vector<T, kBlock> x[kLaneRows], dy[kMaps][kLaneRows];
    load(0, x);
#pragma unroll
    for (int m = 0; m < kMaps; ++m) load(1 + m, dy[m]);
    float dx[kLaneRows][kBlock] = {};
    if constexpr (kAccumulate) {
      Vector<T, kBlock> before[kLaneRows];
      load(1 + kMaps, before);
#pragma unroll
      for (int u = 0; u < kLaneRows; ++u) {
#pragma unroll
        for (int i = 0; i < kBlock; ++i) dx[u][i] = before[u][i];
      }
    }

    if (gates > 0) {
      const int warp_row = tile + warp / 4 * kWarpRows;
      const GateRows<T> dgates{tensors.dgates, warp_row, end, 0, gates};
      folded.AddTo(dgates, dx);
      gate_sums.Add(dgates, x);
#pragma unroll 1
      for (int first = kGateTile; first < gates; first += kGateTile) {
        FoldedGates<T>(tensors.weights, first, column)
            .AddTo(GateRows<T>{tensors.dgates, warp_row, end, first, gates}, dx);
      }
    }

#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
#pragma unroll
      for (int o = 0; o < kBlock; ++o) {
        const Vector<T, kBlock> map =
            LoadVector<kBlock>(tensors.weights.w[m] + int64_t{column + o} * kBlock);
#pragma unroll
        for (int u = 0; u < kLaneRows; ++u) {
          const float d = dy[m][u][o];
#pragma unroll
          for (int i = 0; i < kBlock; ++i) {
            dx[u][i] = fmaf(map[i], d, dx[u][i]);
            sum[m][o][i] = fmaf(d, x[u][i], sum[m][o][i]);
          }
        }
      }
    }
    if (!active) return;
#pragma unroll
    for (int u = 0; u < kLaneRows; ++u) {
      if (row + u >= end) break;
      Vector<T, kBlock> out;
#pragma unroll
      for (int i = 0; i < kBlock; i += 2) out.SetPair(i, dx[u][i], dx[u][i + 1]);
      StoreVector(tensors.dx + int64_t{row + u} * width + column, out);
    }
  };
  for (int i = 0; i < kStages - 1; ++i) fetch(begin + i * kTileRows, i);
  int stage = 0;
#pragma unroll 1
  for (int tile = begin; tile < end; tile += kTileRows) {
    WaitForCopyGroups<kStages - 2>();
    __syncthreads();  // the tile is there, and the one before is done with
    fetch(tile + (kStages - 1) * kTileRows, (stage + kStages - 1) % kStages);
    take(tile, stage);
    stage = (stage + 1) % kStages;
  }
  __syncthreads();

  // Sums of eight gates: over the tile's two rows of warps, out of shared memory.
  const auto store_gates = [&](int first) {
    const int channels = min(kTileColumns, width - first_column);
    float sums[2][kBlock];
    gate_sums.Finish(sums);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      Vector<float, kBlock> line;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) line.Set(i, sums[e][i]);
      const int gate = lane % 4 * 2 + e;
      StoreVector(shared + (warp / 4 * kGateTile + gate) * kPitch + block * kBlock, line);
    }
    __syncthreads();
    float* to = chunk_sums + int64_t{kMaps * kBlock + first} * width + first_column;
    for (int s = static_cast<int>(threadIdx.x); s < kGateTile * kTileColumns; s += kThreads) {
      const int gate = s / kTileColumns, c = s % kTileColumns;
      if (first + gate >= gates || c >= channels) continue;
      const float* from = shared + gate * kPitch + c;
      to[int64_t{gate} * width + c] = from[0] + from[kGateTile * kPitch];
    }
    __syncthreads();
  };
  // Gates past the first eight read x again.
  if (gates > 0) store_gates(0);
#pragma unroll 1
  for (int first = kGateTile; first < gates; first += kGateTile) {
    gate_sums = {};
#pragma unroll 1
    for (int tile = begin; tile < end; tile += kTileRows) {
      Vector<T, kBlock> x[kLaneRows];
#pragma unroll
      for (int u = 0; u < kLaneRows; ++u) {
        const int row = tile + part * kLaneRows + u;
        x[u] = {};
        if (row < end) x[u] = LoadVector<kBlock>(tensors.x + int64_t{row} * width + column);
      }
      gate_sums.Add(GateRows<T>{tensors.dgates, tile + warp / 4 * kWarpRows, end, first, gates}, x);
    }
    store_gates(first);
  }

#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      shared[(part * kTileBlocks + block) * kSumPitch + m * kWeights + w] =
          sum[m][w / kBlock][w % kBlock];
    }
  }
  __syncthreads();
  // Of each map, the weights under the tile's channels lie in a row, block by block.
  const int64_t weights = int64_t{width} * kBlock, first_weight = int64_t{first_column} * kBlock;
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
    for (int s = static_cast<int>(threadIdx.x); s < kTileBlocks * kWeights; s += kThreads) {
      if (first_weight + s >= weights) break;
      float total = 0;
#pragma unroll
      for (int other = 0; other < kParts; ++other) {
        total +=
            shared[(other * kTileBlocks + s / kWeights) * kSumPitch + m * kWeights + s % kWeights];
      }
      chunk_sums[m * weights + first_weight + s] = total;
    }
  }
}

template <int kMaps>
struct WeightGradients {
  float *dw[kMaps], *dgates_w[kMaps];
};

// From all rows' sums the gradients of the weights: one output channel a thread. The sums know of
// dy alone; with the gates' share dw gets gates_w^T dgates^T x as well, while dgates_w gets the map
// of dgates^T x.
template <class T, int kMaps>
__global__ void __launch_bounds__(kTileColumns)
    AddGradientsKernel(const GateWeights<T, kMaps> weights, const float* sums,
                       const WeightGradients<kMaps> gradients) {
  constexpr int kUnroll = 4;  // gates that a thread has under way
  const int width = weights.width, gates = weights.gates;
  const int c = static_cast<int>(blockIdx.x) * kTileColumns + static_cast<int>(threadIdx.x);
  if (c >= width) return;
  const int64_t at = int64_t{c} * kBlock, weights_of_map = int64_t{width} * kBlock;
  // The sum that this starts beside started when BackwardKernel had ended, and that one when all
  // work before it had: what they do not write is there.
  Vector<T, kBlock> map[kMaps];
  Vector<float, kBlock> dw[kMaps];
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
    map[m] = LoadVector<kBlock>(weights.w[m] + at);
    dw[m] = LoadVector<kBlock>(gradients.dw[m] + at);
  }
  AwaitEarlier();
#pragma unroll
  for (int m = 0; m < kMaps; ++m) {
    const Vector<float, kBlock> own = LoadVector<kBlock>(sums + m * weights_of_map + at);
#pragma unroll
    for (int i = 0; i < kBlock; ++i) dw[m].values[i] += own[i];
  }

  const float* products = sums + kMaps * weights_of_map + c / kBlock * kBlock;
#pragma unroll 1
  for (int first = 0; first < gates; first += kUnroll) {
    Vector<float, kBlock> product[kUnroll];
    float weight[kMaps][kUnroll], before[kMaps][kUnroll];
#pragma unroll
    for (int g = 0; g < kUnroll; ++g) {
      if (first + g >= gates) break;
      const int64_t line = int64_t{first + g} * width;
      product[g] = LoadVector<kBlock>(products + line);
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        weight[m][g] = ToFloat(weights.gates_w[m][line + c]);
        before[m][g] = gradients.dgates_w[m][line + c];
      }
    }
#pragma unroll
    for (int g = 0; g < kUnroll; ++g) {
      if (first + g >= gates) break;
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kBlock; ++i) {
          sum = fmaf(map[m][i], product[g][i], sum);
          dw[m].values[i] = fmaf(weight[m][g], product[g][i], dw[m].values[i]);
        }
        gradients.dgates_w[m][int64_t{first + g} * width + c] = before[m][g] + sum;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kMaps; ++m) StoreVector(gradients.dw[m] + at, dw[m]);
}

}  // namespace

void BlockMapBackwardCuda(const BlockMapBackwardArgs& args) {
  const char* kernel = "BlockMapBackward";
  const int64_t width = args.x.dim(-1);
  if (args.x.size() == 0) return;
  const int64_t rows = args.x.size() / width, chunk = BlockMapBackwardChunk(rows, width);
  const unsigned chunks = Pieces(rows, chunk);
  const bool gated = args.dgates.defined();
  const int64_t gates = gated ? args.dgates.dim(-1) : 0;
  const int64_t sums = BlockMapSums(width, static_cast<int64_t>(args.maps.size()), gates);
  float* total = args.workspace.data<float>() + chunks * sums;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    WithMaps(args.maps, [&](auto maps) {
      constexpr int kMaps = decltype(maps)::value;
      GateWeights<T, kMaps> weights{.gates = static_cast<int>(gates),
                                    .width = static_cast<int>(width)};
      BackwardTensors<T, kMaps> tensors{
          .x = args.x.data<T>(), .dx = args.dx.data<T>(), .sums = args.workspace.data<float>()};
      WeightGradients<kMaps> gradients{};
      CheckAligned(kernel, tensors.x);
      CheckAligned(kernel, tensors.dx);
      CheckAligned(kernel, tensors.sums);
      if (gated) tensors.dgates = args.dgates.data<T>();
      for (int m = 0; m < kMaps; ++m) {
        const BlockMapBackwardArgs::Map& map = args.maps[m];
        weights.w[m] = map.w.data<T>();
        tensors.dy[m] = map.dy.data<T>();
        gradients.dw[m] = map.dw.data<float>();
        CheckAligned(kernel, weights.w[m]);
        CheckAligned(kernel, tensors.dy[m]);
        CheckAligned(kernel, gradients.dw[m]);
        if (!gated) continue;
        weights.gates_w[m] = map.gates_w.data<T>();
        gradients.dgates_w[m] = map.dgates_w.data<float>();
        CheckAligned(kernel, weights.gates_w[m]);
      }
      tensors.weights = weights;
      const auto run = [&](auto accumulate) {
        constexpr bool kAccumulate = decltype(accumulate)::value;
        constexpr size_t kShared =
            kStagesOf<T> * kStageTensors<kMaps, kAccumulate> * kStageOfTensor * sizeof(T);
        const auto body = BackwardKernel<T, kMaps, kAccumulate>;
        AllowSharedMemory(body, kShared);
        Launch(kernel, body, dim3(chunks, Pieces(width, kTileColumns)), kThreads, kShared, tensors,
               static_cast<int>(rows), static_cast<int>(chunk));
      };
      args.accumulate ? run(std::true_type{}) : run(std::false_type{});
      constexpr int kWidth = 4, kSumWarps = 8;
      LaunchEarly(kernel, ColumnSumKernel<float, kWidth, kSumWarps, /*kAdd=*/false>,
                  dim3(1, Pieces(sums, 32 * kWidth)), 32 * kSumWarps, 0, tensors.sums,
                  int64_t{chunks}, int64_t{chunks}, sums, total);
      LaunchEarly(kernel, AddGradientsKernel<T, kMaps>, Pieces(width, kTileColumns), kTileColumns,
                  0, weights, total, gradients);
    });
  });
}

}  // namespace eyrie
