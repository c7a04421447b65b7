// What the mLSTM's products over chunks share (mlstm_chunks.h says what they are): how a block is
// laid out, the stages that its products read, and the thread that fills them.
//
// All are products [128 rows, 256 columns] of a block, a warpgroup for 64 rows, over an inner index
// that comes 64 at a time: a stage holds two boxes of 64 x 64 elements for the left operand and
// four for the right one. A cluster has kRows blocks, of rows that follow one another. The right
// operand, which they have in common, each of them copies a part of into all, which spares the L2
// cache. A third warpgroup copies, as in FlashAttention-3 (arXiv:2407.08608).
#pragma once

#include "core/round.h"
#include "kernels/mlstm/mlstm_chunks.h"
#include "kernels/mlstm/mlstm_maps.cuh"
#include "kernels/wgmma.cuh"

namespace eyrie::mlstm_chunks {

using Bf16 = __nv_bfloat16;

inline constexpr int kTile = kMlstmTile, kSteps = kTile / 16;
inline constexpr int kRows = 2, kWarpgroup = 128, kConsumers = 2;
inline constexpr int kThreads = (kConsumers + 1) * kWarpgroup, kStages = 3;
inline constexpr uint32_t kBoxBytes = 64 * 64 * 2;
inline constexpr int kLeftBoxes = kMlstmChunkRows / 64, kRightBoxes = kMlstmChunkColumns / 64;
static_assert(kLeftBoxes == kConsumers && kRightBoxes % kRows == 0);
// Tiles whose tokens are a cluster's rows; a chunk's are those of one or two clusters.
inline constexpr int kClusterTiles = kRows * kLeftBoxes;
static_assert(kMaxMlstmChunkTiles <= 2 * kClusterTiles);

// Where what lies in shared memory, from a multiple of 1024 bytes on. Of a stage: the left
// operand's boxes, the right one's at kRight.
inline constexpr uint32_t kRight = kLeftBoxes * kBoxBytes;
inline constexpr uint32_t kStage = kRight + kRightBoxes * kBoxBytes;
// Of each warpgroup, [64, 256] elements between registers and memory, in boxes.
inline constexpr uint32_t kStagedBytes = kRightBoxes * kBoxBytes, kStagedAt = kStages * kStage;
// Two vectors of a tile's tokens for each stage.
inline constexpr uint32_t kVectorBytes = kTile * sizeof(float);
inline constexpr uint32_t kVectorsAt = kStagedAt + kConsumers * kStagedBytes;
// Barriers: that a stage is there, or free again in both blocks; that what a warpgroup's copy
// staged is there.
inline constexpr uint32_t kBarriers = kVectorsAt + kStages * 2 * kVectorBytes;
inline constexpr uint32_t kBytes = kBarriers + (2 * kStages + kConsumers) * sizeof(uint64_t);
inline constexpr uint32_t kShared = kBytes + 1024;  // wherever the memory starts

// How many clusters' rows the tokens of a chunk are.
__host__ __device__ constexpr int ClustersDown(int chunk_tiles) {
  return CeilDiv(chunk_tiles, kClusterTiles);
}

// A block and its stages, of which step i takes i % kStages.
struct Block {
  __device__ explicit Block(unsigned char* shared)
      : base((SharedAddress(shared) + 1023) / 1024 * 1024),
        memory(shared + (base - SharedAddress(shared))),
        row(static_cast<int>(blockIdx.x) % kRows),
        cluster(static_cast<int>(blockIdx.x) / kRows),
        clusters(static_cast<int>(gridDim.x) / kRows) {}

  __device__ uint32_t Stage(int i) const { return base + i % kStages * kStage; }
  __device__ uint32_t Vectors(int i) const {
    return base + kVectorsAt + i % kStages * 2 * kVectorBytes;
  }
  __device__ uint32_t Staged(int group) const { return base + kStagedAt + group * kStagedBytes; }
  __device__ uint32_t Barrier(int i) const { return base + kBarriers + i * sizeof(uint64_t); }
  __device__ uint32_t Full(int i) const { return Barrier(i % kStages); }
  __device__ uint32_t Free(int i) const { return Barrier(kStages + i % kStages); }
  __device__ uint32_t StagedFull(int group) const { return Barrier(2 * kStages + group); }

  __device__ void InitBarriers() const {
    for (int i = 0; i < kStages; ++i) {
      FillBarrier::Init(Full(i));
      FreeBarrier::Init(Free(i), kRows * kConsumers * 4);
    }
    for (int i = 0; i < kConsumers; ++i) FillBarrier::Init(StagedFull(i));
  }

  // Fills the stage of step i: left(j, load) and right(j, load) call load(map, coordinates) for box
  // j of an operand. Up to `further` bytes more the caller copies afterwards.
  template <class Left, class Right>
  __device__ __forceinline__ void Fill(int i, uint32_t further, const Left& left,
                                       const Right& right) const {
    const uint32_t full = Full(i), stage = Stage(i);
    WaitForPhase(Free(i), i / kStages % 2 ^ 1);
    FillBarrier::Arm(full, kStage + further);
    for (int j = 0; j < kLeftBoxes; ++j) {
      left(j, [&](const CUtensorMap& map, int c0, int c1, int c2, int c3) {
        LoadBox(stage + j * kBoxBytes, map, full, c0, c1, c2, c3);
      });
    }
    constexpr int kRightShare = kRightBoxes / kRows;
    for (int j = row * kRightShare; j < (row + 1) * kRightShare; ++j) {
      right(j, [&](const CUtensorMap& map, int c0, int c1, int c2, int c3) {
        LoadBoxInto((1 << kRows) - 1, stage + kRight + j * kBoxBytes, map, full, c0, c1, c2, c3);
      });
    }
  }
  __device__ __forceinline__ void WaitForStage(int i) const {
    WaitForPhase(Full(i), i / kStages % 2);
  }
  // Whether that would return at once, the same for all of a warp.
  __device__ __forceinline__ bool StageIsThere(int i) const {
    return __all_sync(0xffffffffu, PhaseIsOver(Full(i), i / kStages % 2)) != 0;
  }
  // A warp has read the stage of step i.
  __device__ __forceinline__ void Release(int i) const {
    FreeBarrier::ArriveInAll(Free(i), kRows);  // all copy into it
  }

  // The boxes of a warpgroup, whose threads all call the following. Starts to copy what lies at
  // these coordinates of a map, after what was stored before.
  __device__ __forceinline__ void FetchStaged(int group, const CUtensorMap& map, int c0, int c1,
                                              int c2, int c3) const {
    if (threadIdx.x % kWarpgroup != 0) return;
    WaitUntilStoresRead();
    FillBarrier::Arm(StagedFull(group), kStagedBytes);
    for (int j = 0; j < kRightBoxes; ++j) {
      LoadBox(Staged(group) + j * kBoxBytes, map, StagedFull(group), c0 + 64 * j, c1, c2, c3);
    }
  }
  // Until they may be written again.
  __device__ __forceinline__ void AwaitStaged(int group) const {
    if (threadIdx.x % kWarpgroup == 0) WaitUntilStoresRead();
    NamedBarrier(1 + group, kWarpgroup);
  }
  // Stores the first `boxes` of them, once all threads have written theirs.
  __device__ __forceinline__ void StoreStaged(int group, int boxes, const CUtensorMap& map, int c0,
                                              int c1, int c2, int c3) const {
    FenceForBulkCopies();
    NamedBarrier(1 + group, kWarpgroup);
    if (threadIdx.x % kWarpgroup != 0) return;
    for (int j = 0; j < kRightBoxes; ++j) {
      if (j >= boxes) break;
      StoreBox(map, Staged(group) + j * kBoxBytes, c0 + 64 * j, c1, c2, c3);
    }
  }

  uint32_t base;
  unsigned char* memory;  // what lies at `base`
  int row;                // in its cluster
  int cluster, clusters;
};

// The element pair of accumulators [64, 256] that lies in boxes as a bulk copy has them: of 8
// columns `n` and row AccumulatorRow(lane, 2 * half) of this warp.
__device__ __forceinline__ uint32_t* StagedPair(unsigned char* boxes, int n, int half) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4 + 8 * half;
  return reinterpret_cast<uint32_t*>(boxes + n / 8 * kBoxBytes + ChunkOffset<64>(row, n % 8) +
                                     lane % 4 * 4);
}

// Tiles of a chunk, and the logarithms of their decays, of which each lane of a warp has one.
struct ChunkTiles {
  int first, count, of_lane;
  float log_decay;

  __device__ ChunkTiles(const MlstmLayout& sizes, int head, int chunk, const float* log_decays)
      : first(chunk * sizes.chunk_tiles),
        count(min(sizes.chunk_tiles, sizes.tiles - first)),
        of_lane(static_cast<int>(threadIdx.x) % kMaxMlstmChunkTiles) {
    const int64_t at = static_cast<int64_t>(head) * sizes.tiles + first + of_lane;
    log_decay = of_lane < count ? log_decays[at] : 0.0f;
  }
  // The decay of tiles [begin, end) of the chunk; for whole warps.
  __device__ float Decay(int begin, int end) const {
    float sum = of_lane >= begin && of_lane < end ? log_decay : 0.0f;
    static_assert(32 % kMaxMlstmChunkTiles == 0);
    for (int lane = 1; lane < kMaxMlstmChunkTiles; lane *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    }
    return expf(sum);
  }
};

// Runs a block: produce(block) in one thread, consume(block, warpgroup) in two warpgroups.
template <class Produce, class Consume>
__device__ __forceinline__ void RunBlock(unsigned char* shared, const Produce& produce,
                                         const Consume& consume) {
  const Block block(shared);
  if (threadIdx.x == 0) {
    block.InitBarriers();
    FenceForBulkCopies();
  }
  ClusterBarrier();  // all blocks are there, with their barriers
  // Registers: three threads, one of each warpgroup, start with 504.
  constexpr int kOfProducer = 40, kOfConsumer = (504 - kOfProducer) / 2;
  // The same in all lanes, as the compiler should know.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (group == kConsumers) {
    LowerRegisters<kOfProducer>();
    if (threadIdx.x == kConsumers * kWarpgroup) produce(block);
    __syncwarp();
  } else {
    RaiseRegisters<kOfConsumer>();
    consume(block, group);
  }
  ClusterBarrier();  // until then the others may reach this block's memory
}

// A launch for so many units of work of a cluster, which take turns on the GPU's clusters.
template <auto kKernel, class View>
void LaunchUnits(const char* name, int64_t units, const View& view) {
  const auto launch = [](int64_t clusters) {
    const dim3 grid(static_cast<unsigned>(clusters * kRows));
    return ClusterLaunch<View>(kKernel, kRows, grid, kThreads, kShared);
  };
  static const int most = launch(1).MostAtOnce();
  EYRIE_CHECK(most > 0, name, ": the GPU has no room for a cluster of ", kRows, " blocks");
  launch(std::min<int64_t>(units, most)).Run(name, view);
}

}  // namespace eyrie::mlstm_chunks
