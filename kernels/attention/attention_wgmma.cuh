// What attention's kernels on Hopper's warpgroup products have in common, and how those that hold
// query rows lie in a block: two warpgroups with 64 rows each, all heads' rows in one matrix, and a
// third one that copies these rows and then, in rings of stages, tiles of the keys they see. A
// block takes one tile of rows after another. This is the structure of FlashAttention-3 (Shah and
// others, arXiv:2407.08608).
#pragma once

#include "core/round.h"
#include "kernels/attention/attention_kernels.cuh"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

namespace eyrie::attention_wgmma {

using Bf16 = __nv_bfloat16;

inline constexpr int kWarpgroup = 128, kConsumers = 2, kConsumerWarps = 4 * kConsumers;
inline constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
// Tiles lie in shared memory as boxes of 64 columns side by side.
inline constexpr int kBoxColumns = 64;
inline constexpr uint32_t kBoxRow = kBoxColumns * sizeof(Bf16);

struct WgmmaView {
  AttentionView<Bf16> problem;
  CUtensorMap q, dout, k, v, past_k, past_v;
};

// Rows [B, rows, width] in boxes of `box_rows` rows.
inline CUtensorMap MapRows(const AttentionView<Bf16>& view, const Bf16* data, int64_t rows,
                           int box_rows) {
  const uint64_t row = static_cast<uint64_t>(view.width) * sizeof(Bf16);
  return MakeTensorMap({.data = data,
                        .dimensions = 3,
                        .sizes = {static_cast<uint64_t>(view.width), static_cast<uint64_t>(rows),
                                  static_cast<uint64_t>(view.sequences)},
                        .strides = {row, row * rows},
                        .box = {kBoxColumns, static_cast<uint32_t>(box_rows), 1}});
}
// dout may be null.
inline WgmmaView MapProblem(const AttentionView<Bf16>& view, const Bf16* dout, int box_rows,
                            int box_keys) {
  const int64_t rows = int64_t{view.tokens} * view.heads;
  WgmmaView mapped{.problem = view};
  mapped.q = MapRows(view, view.q, rows, box_rows);
  if (dout != nullptr) mapped.dout = MapRows(view, dout, rows, box_rows);
  mapped.k = MapRows(view, view.k, view.tokens, box_keys);
  mapped.v = MapRows(view, view.v, view.tokens, box_keys);
  if (view.past > 0) {
    mapped.past_k = MapRows(view, view.past_k, view.past, box_keys);
    mapped.past_v = MapRows(view, view.past_v, view.past, box_keys);
  }
  return mapped;
}

// Buffers in shared memory that are filled by bulk copies and read by `readers` warps, in turn:
// the i-th filling goes to buffer i % kStages.
template <int kStages, uint32_t kBytes>
struct Ring {
  static constexpr uint32_t kAllBytes = kStages * kBytes;
  static constexpr uint32_t kBarrierBytes = 2 * kStages * sizeof(uint64_t);
  uint32_t buffers, barriers;

  __device__ uint32_t Buffer(int i) const { return buffers + i % kStages * kBytes; }
  __device__ uint32_t Full(int i) const { return barriers + i % kStages * sizeof(uint64_t); }
  __device__ uint32_t Free(int i) const { return Full(i) + kStages * sizeof(uint64_t); }

  __device__ void Init(int readers) const {
    for (int i = 0; i < kStages; ++i) {
      FillBarrier::Init(Full(i));
      FreeBarrier::Init(Free(i), readers);
    }
  }
  __device__ void WaitUntilFree(int i) const { WaitForPhase(Free(i), i / kStages % 2 ^ 1); }
  __device__ void WaitUntilFull(int i) const { WaitForPhase(Full(i), i / kStages % 2); }
  // Of a warp that has read what it needs.
  __device__ void Release(int i) const { FreeBarrier::Arrive(Free(i)); }
};

// Boxes of `rows` rows from `row` of sequence b on; their bytes count at `barrier`.
template <int kBoxes>
__device__ __forceinline__ void LoadTile(uint32_t to, const CUtensorMap& map, uint32_t barrier,
                                         int rows, int row, int b) {
  for (int j = 0; j < kBoxes; ++j) {
    LoadBox(to + j * rows * kBoxRow, map, barrier, j * kBoxColumns, row, b);
  }
}
// The keys of a tile, or their values, whose maps are `current` and `past`.
template <int kBoxes>
__device__ __forceinline__ void LoadKeys(uint32_t to, const WgmmaView& view,
                                         const CUtensorMap& current, const CUtensorMap& past,
                                         uint32_t barrier, int rows, int first_key, int b) {
  const bool before = first_key < 0;
  LoadTile<kBoxes>(to, before ? past : current, barrier, rows,
                   before ? first_key + view.problem.past : first_key, b);
}

using eyrie::Hold;
template <int kSteps>
__device__ __forceinline__ void Hold(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) Hold(a[step]);
}

// d (+)= A B^T [64, N] over kSteps * 16 columns of rows in boxes of shared memory. Boxes of A are
// a_box bytes after each other, those of B b_box.
template <int kSteps, int kGroups>
__device__ __forceinline__ void MultiplyRows(float (&d)[kGroups][4], uint32_t a, uint32_t a_box,
                                             uint32_t b, uint32_t b_box) {
  uint64_t first_a = RowsDescriptor<kBoxRow>(a, 0), first_b = RowsDescriptor<kBoxRow>(b, 0);
  // Those of all steps are not to be kept in registers.
  Hold(first_a);
  Hold(first_b);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    Wgmma<false, false>(d, Further(first_a, step / 4 * a_box + step % 4 * 32),
                        Further(first_b, step / 4 * b_box + step % 4 * 32), step > 0);
  }
  WgmmaCommit();
}
// d += A B: A [64, 16 kSteps] packed, B the rows of a tile.
template <int kSteps, int kGroups>
__device__ __forceinline__ void AddTimesRows(float (&d)[kGroups][4], const uint32_t (&a)[kSteps][4],
                                             uint32_t b, uint32_t b_box) {
  uint64_t first = ColumnsDescriptor<kBoxRow>(b, 0, b_box);
  Hold(first);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    Wgmma<true>(d, a[step], Further(first, step * 16 * kBoxRow), true);
  }
  WgmmaCommit();
}
// Accumulators [64, 16 kSteps] as operand A of a product.
template <int kSteps>
__device__ __forceinline__ void PackRows(const float (&from)[2 * kSteps][4],
                                         uint32_t (&to)[kSteps][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&pair)[4] = from[2 * step + i / 2];
      to[step][i] = Pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
    }
  }
}
// A block that holds kHeldTensors of 128 query rows and streams tiles of keys and of values.
template <int kPadded, int kTileKeys, int kHeldTensors_, int kKeyStages, int kValueStages>
struct QueryShape {
  static constexpr int kWidth = kPadded, kKeys = kTileKeys, kRows = 64 * kConsumers;
  static constexpr int kHeldTensors = kHeldTensors_, kBoxes = kWidth / kBoxColumns;
  static constexpr uint32_t kHeldBox = kRows * kBoxRow, kHeldBytes = kBoxes * kHeldBox;
  static constexpr uint32_t kKeyBox = kKeys * kBoxRow, kTileBytes = kBoxes * kKeyBox;
  static_assert(kTileBytes % 1024 == 0);
  using Held = Ring<1, kHeldTensors * kHeldBytes>;
  using Keys = Ring<kKeyStages, kTileBytes>;
  using Values = Ring<kValueStages, kTileBytes>;
  static constexpr uint32_t kKeysAt = Held::kAllBytes, kValuesAt = kKeysAt + Keys::kAllBytes;
  static constexpr uint32_t kSightAt = kValuesAt + Values::kAllBytes;
  static constexpr uint32_t kBarriers = kSightAt + sizeof(Sight);
  static constexpr uint32_t kBytes =
      kBarriers + Held::kBarrierBytes + Keys::kBarrierBytes + Values::kBarrierBytes;
  static constexpr uint32_t kShared = kBytes + 1024;  // wherever the memory starts
};

// Launches a kernel of WgmmaView and `rest` whose blocks, of shape S, take all tiles of rows in
// turn. dout may be null.
template <class S, class... Rest>
void LaunchQueries(const char* name, void (*kernel)(WgmmaView, Rest...),
                   const AttentionView<Bf16>& view, const Bf16* dout,
                   const std::type_identity_t<Rest>&... rest) {
  const int64_t tiles =
      view.sequences * CeilDiv(int64_t{view.tokens} * view.heads, int64_t{S::kRows});
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, Multiprocessors()));
  AllowSharedMemory(kernel, S::kShared);
  Launch(name, kernel, dim3(blocks), dim3(kThreads), S::kShared,
         MapProblem(view, dout, S::kRows, S::kKeys), rest...);
}

// What the threads of such a block agree on.
template <class S>
struct QueryTiles {
  __device__ QueryTiles(const AttentionView<Bf16>& view, unsigned char* memory)
      : base((SharedAddress(memory) + 1023) / 1024 * 1024),
        held{base, base + S::kBarriers},
        keys{base + S::kKeysAt, held.barriers + S::Held::kBarrierBytes},
        values{base + S::kValuesAt, keys.barriers + S::Keys::kBarrierBytes},
        sight(reinterpret_cast<Sight*>(memory + (base - SharedAddress(memory)) + S::kSightAt)),
        count(CeilDiv(view.rows(), S::kRows) * view.sequences) {}

  __device__ void InitBarriers() const {
    held.Init(kConsumerWarps);
    keys.Init(kConsumerWarps);
    values.Init(kConsumerWarps);
  }
  // The last rows of a sequence see the most keys and go first.
  __device__ int Sequence(const AttentionView<Bf16>& view, int tile) const {
    return tile % view.sequences;
  }
  __device__ int FirstRow(const AttentionView<Bf16>& view, int tile) const {
    return (count - 1 - tile) / view.sequences * S::kRows;
  }
  static __device__ SegmentTiles KeysOf(const Sight& seen) {
    return {seen.first_min, seen.token_max + 1, S::kKeys};
  }
  // Where the rows of a warpgroup start in a held tensor.
  __device__ uint32_t Rows(int tensor, int group) const {
    return held.buffers + tensor * S::kHeldBytes + group * 64 * kBoxRow;
  }

  uint32_t base;
  typename S::Held held;
  typename S::Keys keys;
  typename S::Values values;
  Sight* sight;  // of the rows that are held
  int count;     // tiles of rows, of all sequences
};

// The warp that copies.
template <class S>
__device__ __forceinline__ void Produce(const WgmmaView& view, const QueryTiles<S>& block) {
  const AttentionView<Bf16>& problem = view.problem;
  const bool copies = threadIdx.x % 32 == 0;
  int streamed = 0;
  for (int tile = static_cast<int>(blockIdx.x), turn = 0; tile < block.count;
       tile += static_cast<int>(gridDim.x), ++turn) {
    const int b = block.Sequence(problem, tile), row = block.FirstRow(problem, tile);
    const Sight seen = SightOfRows<S::kRows>(problem, b, row);
    const SegmentTiles keys = block.KeysOf(seen);
    const int count = keys.count();
    if (copies) {
      const uint32_t to = block.held.buffers, full = block.held.Full(turn);
      block.held.WaitUntilFree(turn);
      *block.sight = seen;
      FillBarrier::Arm(full, S::kHeldTensors * S::kHeldBytes);
      LoadTile<S::kBoxes>(to, view.q, full, S::kRows, row, b);
      if (S::kHeldTensors > 1) {
        LoadTile<S::kBoxes>(to + S::kHeldBytes, view.dout, full, S::kRows, row, b);
      }
      for (int i = 0; i < count; ++i) {
        const int at = streamed + i, first = keys.First(i);
        block.keys.WaitUntilFree(at);
        FillBarrier::Arm(block.keys.Full(at), S::kTileBytes);
        LoadKeys<S::kBoxes>(block.keys.Buffer(at), view, view.k, view.past_k, block.keys.Full(at),
                            S::kKeys, first, b);
        block.values.WaitUntilFree(at);
        FillBarrier::Arm(block.values.Full(at), S::kTileBytes);
        LoadKeys<S::kBoxes>(block.values.Buffer(at), view, view.v, view.past_v,
                            block.values.Full(at), S::kKeys, first, b);
      }
    }
    streamed += count;
    __syncwarp();
  }
}

// What a lane knows of its rows AccumulatorRow(lane, 2 h) of a warp's 16.
struct LaneRows {
  __device__ LaneRows(const AttentionView<Bf16>& view, int b, int first_row) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row[h] = first_row + AccumulatorRow(lane, 2 * h);
      const int token = row[h] / view.heads;
      first[h] = exists(view, h) ? view.FirstKey(b, token) : INT_MAX / 2;
      last[h] = exists(view, h) ? token : INT_MIN / 2;
    }
  }
  __device__ bool exists(const AttentionView<Bf16>& view, int h) const {
    return row[h] < view.rows();
  }
  // Sets the accumulators of keys of a tile that their rows do not see.
  template <int kGroups>
  __device__ __forceinline__ void Mask(const SegmentTiles& keys, int tile, float value,
                                       float (&scores)[kGroups][4]) const {
    const int begin = keys.First(tile) + AccumulatorColumn(static_cast<int>(threadIdx.x) % 32, 0);
    const int end = keys.End(tile);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Compared with the column of the tile, for the lane's first one.
      const int from = first[h] - begin, to = min(last[h], end - 1) - begin;
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = 8 * n + i;
          if (column < from || column > to) scores[n][2 * h + i] = value;
        }
      }
    }
  }

  int row[2], first[2], last[2];  // of the keys it sees, both included
};
// Whether all rows see all `size` keys of a tile.
__device__ __forceinline__ bool SeenByAll(const Sight& sight, const SegmentTiles& keys, int tile) {
  const int first = keys.First(tile), end = keys.End(tile);
  return end - first == keys.size && sight.SeesAll(first, end);
}

// What a kernel does with its block: starts the barriers, then runs one of two roles: produce() in
// a warp of the last warpgroup, consume(group) in the others. kOfProducer: registers of a thread of
// the former. Three threads, one of each warpgroup, start with 504.
template <int kOfProducer, class Block, class Produce, class Consume>
__device__ __forceinline__ void RunRoles(const Block& block, const Produce& produce,
                                         const Consume& consume) {
  if (threadIdx.x == 0) {
    block.InitBarriers();
    FenceForBulkCopies();
  }
  __syncthreads();
  // The same in all lanes, as the compiler should know.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp >= kConsumerWarps) {
    LowerRegisters<kOfProducer>();
    if (warp == kConsumerWarps) produce();
  } else {
    RaiseRegisters<(504 - kOfProducer) / 2>();
    consume(warp / 4);
  }
}

}  // namespace eyrie::attention_wgmma
