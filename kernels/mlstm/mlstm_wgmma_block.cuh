// How a pass of the mLSTM by warpgroup products lies in a block (mlstm_wgmma.cu): what is where in
// shared memory, and the thread that fills it.
#pragma once

#include "kernels/mlstm/mlstm_kernels.cuh"
#include "kernels/mlstm/mlstm_maps.cuh"
#include "kernels/wgmma.cuh"

namespace eyrie::mlstm_wgmma {

using Bf16 = __nv_bfloat16;

inline constexpr int kTile = kMlstmTile, kSteps = kTile / 16;
inline constexpr int kBlockKeys = 256, kBlockValues = 128;
inline constexpr int kWarpgroup = 128, kConsumers = kBlockValues / 64;
inline constexpr int kConsumerWarps = 4 * kConsumers;
inline constexpr int kThreads = (kConsumers + 1) * kWarpgroup, kStages = 2;
inline constexpr uint32_t kBoxBytes = kTile * 64 * 2;
inline constexpr int kKeyBoxes = kBlockKeys / 64;

inline constexpr uint32_t kVectorBytes = kTile * sizeof(float);

// Where what lies in shared memory, from a multiple of 1024 bytes on.
template <int kBlocks>
struct PassShape {
  static constexpr int kOwnTokens = kTile / kBlocks, kGroups = kOwnTokens / 8;
  static constexpr uint32_t kKeyBytes = kKeyBoxes * kBoxBytes, kValueBytes = kConsumers * kBoxBytes;
  static constexpr uint32_t kScoreBytes = kTile * kOwnTokens * 2;
  // Of a stage: q at its start, k at kKeyBytes, v, scores.
  static constexpr uint32_t kValues = 2 * kKeyBytes;
  static constexpr uint32_t kScores = kValues + kValueBytes, kStage = kScores + kScoreBytes;
  // A warpgroup's outputs on their way to memory.
  static constexpr uint32_t kOutputBytes = kOwnTokens * 128, kOutputs = kStages * kStage;
  // Parts of a warpgroup's outputs from another block, in two buffers.
  static constexpr uint32_t kPartBytes = kGroups * kWarpgroup * sizeof(float4);
  static constexpr uint32_t kParts = kOutputs + kConsumers * kOutputBytes;
  static constexpr uint32_t kVectorsAt = kParts + 2 * kConsumers * (kBlocks - 1) * kPartBytes;
  // Barriers: of stages, that q and the scores, or k, v and the vectors, are there, or free again;
  // of the buffers of parts; that rows to multiply outputs with are there.
  static constexpr uint32_t kBarriers = kVectorsAt + kStages * kVectors * kVectorBytes;
  static constexpr uint32_t kBytes = kBarriers + (4 * kStages + 3 * kConsumers) * sizeof(uint64_t);
  static constexpr uint32_t kShared = kBytes + 1024;  // wherever the memory starts
};

struct PassView {
  MlstmLayout sizes;
  MlstmPass<Bf16> pass;
  CUtensorMap q, k, v, o, multiplied, scores;
};

// What the threads of a block agree on.
template <int kBlocks, bool kReverse>
struct PassBlock {
  using S = PassShape<kBlocks>;

  __device__ PassBlock(const MlstmLayout& sizes, const MlstmPass<Bf16>& pass, uint32_t memory)
      : base((memory + 1023) / 1024 * 1024),
        rank(static_cast<int>(blockIdx.x) % kBlocks),
        head(static_cast<int>(blockIdx.x) / kBlocks),
        chunk(static_cast<int>(blockIdx.y)),
        first_key(rank * kBlockKeys),
        first_value(static_cast<int>(blockIdx.z) * kBlockValues),
        tiles(min(sizes.chunk_tiles, sizes.tiles - chunk * sizes.chunk_tiles)),
        vectors{pass.sees, pass.seen, pass.factor, pass.extra_sees, pass.extra_seen},
        first_tile(chunk * sizes.chunk_tiles) {}

  // The tile that the pass comes to as the i-th, its stage, and the parity of the stage's phase.
  __device__ int TileAt(int i) const { return first_tile + (kReverse ? tiles - 1 - i : i); }
  __device__ uint32_t Stage(int i) const { return base + i % kStages * S::kStage; }
  static __device__ int Parity(int i) { return i / kStages % 2; }
  __device__ uint32_t Vectors(int i) const {
    return base + S::kVectorsAt + i % kStages * kVectors * kVectorBytes;
  }

  __device__ uint32_t Barrier(int i) const { return base + S::kBarriers + i * sizeof(uint64_t); }
  __device__ uint32_t QueriesFull(int i) const { return Barrier(i % kStages); }
  __device__ uint32_t QueriesFree(int i) const { return Barrier(kStages + i % kStages); }
  __device__ uint32_t KeysFull(int i) const { return Barrier(2 * kStages + i % kStages); }
  __device__ uint32_t KeysFree(int i) const { return Barrier(3 * kStages + i % kStages); }
  __device__ uint32_t PartsFull(int i, int group) const {
    return Barrier(4 * kStages + i % 2 * kConsumers + group);
  }
  __device__ uint32_t MultipliedFull(int group) const {
    return Barrier(4 * kStages + 2 * kConsumers + group);
  }
  __device__ void InitBarriers() const {
    for (int i = 0; i < kStages; ++i) {
      FillBarrier::Init(QueriesFull(i));
      FillBarrier::Init(KeysFull(i));
      FreeBarrier::Init(QueriesFree(i), kConsumerWarps);
      FreeBarrier::Init(KeysFree(i), kConsumerWarps);
    }
    for (int i = 0; i < kConsumers; ++i) {
      FillBarrier::Init(PartsFull(0, i));
      FillBarrier::Init(PartsFull(1, i));
      FillBarrier::Init(MultipliedFull(i));
    }
  }
  // A thread's share of 8 tokens in the part of a warpgroup's outputs that `to` gets from `from`.
  __device__ uint32_t PartAt(int i, int group, int from, int to, int tokens, int thread) const {
    const int slot = from < to ? from : from - 1;
    const int buffer = i % 2 * kConsumers + group;
    return base + S::kParts + (buffer * (kBlocks - 1) + slot) * S::kPartBytes +
           (tokens * kWarpgroup + thread) * sizeof(float4);
  }

  uint32_t base;
  int rank, head, chunk, first_key, first_value, tiles;
  const float* vectors[kVectors];

 private:
  int first_tile;
};

// The thread that copies tiles.
template <int kBlocks, bool kReverse>
__device__ __forceinline__ void Produce(const PassView& view,
                                        const PassBlock<kBlocks, kReverse>& block) {
  using S = PassShape<kBlocks>;
  const MlstmLayout& sizes = view.sizes;
  const int head = block.head, in_sequence = head % sizes.heads, sequence = head / sizes.heads;
  for (int i = 0; i < block.tiles; ++i) {
    const int tile = block.TileAt(i), begin = tile * kTile;
    const uint32_t stage = block.Stage(i);
    const int before = block.Parity(i) ^ 1;
    if (view.pass.o != nullptr) {
      const uint32_t full = block.QueriesFull(i);
      WaitForPhase(block.QueriesFree(i), before);
      FillBarrier::Arm(full, S::kKeyBytes + S::kScoreBytes);
      for (int j = 0; j < kKeyBoxes; ++j) {
        LoadBox(stage + j * kBoxBytes, view.q, full, block.first_key + 64 * j, in_sequence, begin,
                sequence);
      }
      // Of the tokens that this block finishes: rows that see, or columns where time runs backward.
      const int seeing = block.rank * S::kOwnTokens, scores = (head * sizes.tiles + tile) * kTile;
      LoadBox(stage + S::kScores, view.scores, full, kReverse ? seeing : 0,
              scores + (kReverse ? 0 : seeing));
    }
    const uint32_t full = block.KeysFull(i);
    uint32_t bytes = S::kKeyBytes + S::kValueBytes;
    for (int j = 0; j < kVectors; ++j) bytes += block.vectors[j] == nullptr ? 0 : kVectorBytes;
    WaitForPhase(block.KeysFree(i), before);
    FillBarrier::Arm(full, bytes);
    for (int j = 0; j < kConsumers; ++j) {
      LoadBox(stage + S::kValues + j * kBoxBytes, view.v, full, block.first_value + 64 * j,
              in_sequence, begin, sequence);
    }
    for (int j = 0; j < kVectors; ++j) {
      if (block.vectors[j] == nullptr) continue;
      LoadBytes(block.Vectors(i) + j * kVectorBytes,
                block.vectors[j] + head * sizes.padded() + begin, kVectorBytes, full);
    }
    for (int j = 0; j < kKeyBoxes; ++j) {
      LoadBox(stage + S::kKeyBytes + j * kBoxBytes, view.k, full, block.first_key + 64 * j,
              in_sequence, begin, sequence);
    }
  }
}

}  // namespace eyrie::mlstm_wgmma
