// How the RG-LRU runs along time on a GPU: one pass over the inputs, although every state needs the
// one before it. The [T, R] matrix of a sequence is cut into tiles of 64 tokens by 64 channels.
// A block of eight warps takes one tile after the other:
//
//   load    the tile's inputs travel to shared memory (cp.async), if possible during the tile
//   before map     each warp composes the affine maps of its eight tokens, a lane two channels link
//   two warps, a lane one channel: compose the warps' maps into the tile's own, publish it,
//           wait for the state before the tile, and hand each warp the state it starts from
//   finish  each warp runs through its tokens once more, from registers, and writes the results
//
// The state before a tile comes from its predecessors, by a single-pass scan with look-back:
// Merrill and Garland, "Single-pass Parallel Prefix Scan with Decoupled Look-back", NVIDIA
// NVR-2016-002. That algorithm takes whatever predecessors have published, so its rounding differs
// from run to run. Here the order is fixed: tiles of one column form groups of kGroup; a tile
// composes the maps of all tiles before it in its group, then applies them to the state that the
// group before handed on. Only the hand-over from group to group is serial: one wait in 1024
// tokens.
//
// Tiles are numbered with time slowest, and blocks draw numbers from a counter, in rising order: a
// tile waits for lower numbers alone, and the lowest unfinished one waits for nobody. So the scan
// ends however many blocks run at once.
#pragma once

#include <cuda_pipeline.h>

#include <cuda/atomic>

#include "kernels/partition.h"
#include "kernels/rg_lru/rg_lru_math.cuh"

namespace eyrie::rg_lru {

inline constexpr int kWarps = 8, kThreads = 32 * kWarps;
inline constexpr int kSteps = 8;               // tokens of a warp
inline constexpr int kRows = kWarps * kSteps;  // tokens of a tile
inline constexpr int kColumns = 64;            // channels of a tile, two a lane
inline constexpr int kStrip = 32;              // channels that one warp links
inline constexpr int kLinkWarps = kColumns / kStrip;
inline constexpr int kLoaders = kThreads - 32 * kLinkWarps;  // the other warps load
inline constexpr int kGroup = 16;                            // tiles of a group, at most 32
inline constexpr int kBatch = 8;                             // maps that a lane loads at once

// The cut of a [B, T, R] tensor. `order` counts the tiles of one column in the order of the scan:
// along time, or against it on the way back.
struct Plan {
  explicit Plan(const Shape& u)
      : batch(static_cast<int>(u[0])),
        time(static_cast<int>(u[1])),
        channels(static_cast<int>(u[2])),
        blocks(static_cast<int>(CeilDiv(u[2], kColumns))),
        orders(static_cast<int>(CeilDiv(u[1], kRows))) {}

  int batch, time, channels;
  int blocks;  // of 64 channels
  int orders;  // tiles along time

  // Channels of all sequences, each sequence rounded up to whole tiles.
  __host__ __device__ int64_t columns() const { return int64_t{batch} * blocks * kColumns; }
  __host__ __device__ int tiles() const { return batch * blocks * orders; }
};

struct Tile {
  template <bool kReverse>
  __device__ static Tile Number(const Plan& plan, int number) {
    const int order = number / (plan.batch * plan.blocks);
    const int place = number % (plan.batch * plan.blocks);
    const int chunk = kReverse ? plan.orders - 1 - order : order;
    return {place / plan.blocks, chunk * kRows, place % plan.blocks * kColumns, order,
            int64_t{place} * kColumns};
  }
  // Channels of the tile that exist.
  __device__ int count(const Plan& plan) const {
    const int left = plan.channels - channel;
    return left < kColumns ? left : kColumns;
  }
  // Of a [B, T, R] tensor, the element (b, t, first channel).
  __device__ int64_t Offset(const Plan& plan, int t) const {
    return (int64_t{b} * plan.time + t) * plan.channels + channel;
  }

  int b;           // sequence
  int t;           // first token
  int channel;     // first channel
  int order;       // in the scan
  int64_t column;  // first of all sequences' channels
};

// What tiles tell one another, in global memory. `tickets` and `flags` are 0 at the start.
struct Board {
  int* tickets;  // the next tile's number
  int* flags;    // [orders, columns / 32], 1 when the entries of `maps` can be read
  Affine* maps;  // [orders, columns] of a tile; of a group's last tile: .x, the state after it

  // Float32 elements of a workspace; tickets and flags come first.
  static int64_t Head(const Plan& plan) {
    return 32 + CeilDiv(plan.orders * (plan.columns() / kStrip), 32) * 32;
  }
  static int64_t Size(const Plan& plan) { return Head(plan) + 2 * plan.orders * plan.columns(); }
  Board(const Plan& plan, float* workspace)
      : tickets(reinterpret_cast<int*>(workspace)),
        flags(tickets + 32),
        maps(reinterpret_cast<Affine*>(workspace + Head(plan))) {}
  void Clear(const Plan& plan) const {
    EYRIE_CUDA_CHECK(cudaMemsetAsync(tickets, 0, static_cast<size_t>(Head(plan)) * sizeof(int),
                                     ComputeStream()));
  }
};

// One lane's view of the board: the column of one channel. All lanes of a warp call together, with
// neighbouring columns.
class BoardColumn {
 public:
  __device__ BoardColumn(const Plan& plan, const Board& board, int64_t column)
      : flags_(board.flags + column / kStrip),
        maps_(board.maps + column),
        columns_(plan.columns()),
        lane_(threadIdx.x % 32) {}

  // Lane 0's release covers what the other lanes wrote before the barrier.
  __device__ void Publish(int order, Affine map) const {
    __stcg(reinterpret_cast<float2*>(maps_ + order * columns_), make_float2(map.a, map.x));
    __syncwarp();
    if (lane_ == 0) Flag(order).store(1, cuda::memory_order_release);
  }
  // Waits for tiles [order, order + count), at most 32: a lane watches one.
  __device__ void Wait(int order, int count) const {
    while (!__all_sync(
        ~0u, lane_ >= count || Flag(order + lane_).load(cuda::memory_order_acquire) != 0)) {
    }
    __syncwarp();
  }
  __device__ Affine Read(int order) const {
    const float2 map = __ldcg(reinterpret_cast<const float2*>(maps_ + order * columns_));
    return {map.x, map.y};
  }

 private:
  __device__ cuda::atomic_ref<int, cuda::thread_scope_device> Flag(int order) const {
    return cuda::atomic_ref<int, cuda::thread_scope_device>(flags_[order * (columns_ / kStrip)]);
  }
  int* flags_;
  Affine* maps_;
  int64_t columns_;
  int lane_;
};

// The state before tile `order` of this lane's column, whose own map is `own`. Tells the tiles
// after it what they need as early as possible.
__device__ __forceinline__ float StateBefore(const BoardColumn& column, int order, int orders,
                                             Affine own, float initial) {
  const int member = order % kGroup, group = order - member;
  const bool hands_on = member == kGroup - 1;
  const bool awaited = order + 1 < orders;
  if (awaited && !hands_on) column.Publish(order, own);

  Affine before{1, 0};
  column.Wait(group, member);
  for (int first = 0; first < member; first += kBatch) {
    Affine maps[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      maps[i] = first + i < member ? column.Read(group + first + i) : Affine{1, 0};
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) before = Then(before, maps[i]);
  }
  float state = initial;
  if (group > 0) {
    column.Wait(group - 1, 1);
    state = column.Read(group - 1).x;
  }
  state = Apply(before, state);
  if (awaited && hands_on) column.Publish(order, {0, Apply(own, state)});
  return state;
}

// Called by the link warps. Turns `maps`, those of the tile's warps in the order of the scan, into
// the states that the warps start from (.x). `first` [B, R], optional, is the state before the
// first tile; `last` [B, R], optional, receives the one after the last.
__device__ __forceinline__ void Link(const Plan& plan, const Board& board, const Tile& tile,
                                     Affine (*maps)[kColumns], const float* first, float* last) {
  const int c = threadIdx.x, channel = tile.channel + c;
  const int64_t state_index = int64_t{tile.b} * plan.channels + channel;
  const bool exists = channel < plan.channels;

  Affine own = maps[0][c];
#pragma unroll 2
  for (int w = 1; w < kWarps; ++w) own = Then(own, maps[w][c]);
  const float initial = first != nullptr && exists ? first[state_index] : 0;
  float state =
      StateBefore(BoardColumn(plan, board, tile.column + c), tile.order, plan.orders, own, initial);
#pragma unroll 2
  for (int w = 0; w < kWarps; ++w) {
    const Affine map = maps[w][c];
    maps[w][c].x = state;
    state = Apply(map, state);
  }
  if (last != nullptr && exists && tile.order == plan.orders - 1) last[state_index] = state;
}

// What a tile's inputs need beside the tensors of [B, T, R].
struct TileFacts {
  float rate[kColumns];  // l = rate * r; 0 where there is no channel
  int positions[kRows];  // -1 where there is no token
};

// Called by the loading warps, `loader` in [0, kLoaders): fetches tokens [t, t + kRows) of the
// tile's channels, zeros where there is no such token or channel. With kVectors, complete only
// after a wait for the pipeline.
template <bool kVectors, class T>
__device__ __forceinline__ void LoadTile(const Plan& plan, const Tile& tile, int loader, int t,
                                         const T* tensor, T (*to)[kColumns]) {
  constexpr int kWidth = kVectors ? kVectorWidth<T> : 1;
  constexpr int kPieces = kColumns / kWidth;  // of a row
  const T* from = tensor + tile.Offset(plan, t);
  const int count = tile.count(plan);
  for (int i = loader; i < kRows * kPieces; i += kLoaders) {
    const int row = i / kPieces, c = i % kPieces * kWidth;
    const bool exists = t + row >= 0 && t + row < plan.time && c < count;
    const T* source = exists ? from + int64_t{row} * plan.channels + c : tensor;
    if constexpr (kVectors) {
      __pipeline_memcpy_async(&to[row][c], source, 16, exists ? 0 : 16);
    } else {
      to[row][c] = exists ? *source : FromFloat<T>(0);
    }
  }
}
template <class T>
__device__ __forceinline__ void LoadFacts(const Plan& plan, const Tile& tile, int loader,
                                          const T* lambda, const int* positions, TileFacts& to) {
  static_assert(kLoaders >= kRows + kColumns);
  if (loader < kRows) {
    const int t = tile.t + loader;
    if (t < plan.time) {
      __pipeline_memcpy_async(&to.positions[loader], positions + int64_t{tile.b} * plan.time + t,
                              sizeof(int));
    } else {
      to.positions[loader] = -1;
    }
  } else if (loader >= kLoaders - kColumns) {
    const int c = loader - (kLoaders - kColumns);
    to.rate[c] = c < tile.count(plan) ? Rate(lambda, tile.channel + c) : 0;
  }
}

// Writes channels c and c + 1 of a row, as far as they exist.
template <bool kVectors, class T>
__device__ __forceinline__ void StorePair(T* row, int c, int count, const float (&pair)[2]) {
  if constexpr (kVectors) {
    if (c >= count) return;
    Vector<T, 2> vector;
    vector.Set(0, pair[0]);
    vector.Set(1, pair[1]);
    StoreVector(row + c, vector);
  } else {
    if (c < count) row[c] = FromFloat<T>(pair[0]);
    if (c + 1 < count) row[c + 1] = FromFloat<T>(pair[1]);
  }
}

// Takes a block through its tiles, by the phases above; each is called as phase(stage, number) by
// the warps that it concerns. With two stages of inputs a tile is loaded during the one before it,
// and `finish` must not read the inputs. `numbers` is shared memory.
template <int kStages, class Load, class Map, class LinkPhase, class Finish>
__device__ __forceinline__ void ForTiles(const Plan& plan, const Board& board,
                                         int (&numbers)[kStages], const Load& load, const Map& map,
                                         const LinkPhase& link, const Finish& finish) {
  static_assert(kStages == 1 || kStages == 2);
  const int loader = static_cast<int>(threadIdx.x) - 32 * kLinkWarps;
  const int tiles = plan.tiles();
  const auto start_loading = [&](int stage) {
    if (loader >= 0 && numbers[stage] < tiles) load(stage, numbers[stage], loader);
    __pipeline_commit();
  };
  if (threadIdx.x == 0) {
    for (int& number : numbers) number = atomicAdd(board.tickets, 1);
  }
  __syncthreads();
  for (int stage = 0; stage < kStages; ++stage) start_loading(stage);

  for (int stage = 0;; stage = (stage + 1) % kStages) {
    const int number = numbers[stage];
    if (number >= tiles) return;
    int next = 0;
    if (threadIdx.x == 0) next = atomicAdd(board.tickets, 1);
    __pipeline_wait_prior(kStages - 1);
    __syncthreads();
    map(stage, number);
    if (threadIdx.x == 0) numbers[stage] = next;
    __syncthreads();
    if constexpr (kStages == 2) start_loading(stage);
    if (loader < 0) link(stage, number);
    __syncthreads();
    finish(stage, number);
    if constexpr (kStages == 1) {
      __syncthreads();
      start_loading(stage);
    }
  }
}

// Blocks of a kernel that run at once. Asked once a kernel: it is a constant of kernel and GPU.
template <auto kKernel>
int ResidentBlocks(size_t shared) {
  static const int blocks = [&] {
    AllowSharedMemory(kKernel, shared);
    int of_each = 0;
    EYRIE_CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_each, kKernel, kThreads, shared));
    return of_each * Multiprocessors();
  }();
  return blocks;
}

}  // namespace eyrie::rg_lru
