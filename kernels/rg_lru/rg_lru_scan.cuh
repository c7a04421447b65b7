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
// applies the maps of all tiles before it in its group to the state that the group before handed
// on. Only the hand-over from group to group is serial: one wait in 512 tokens.
//
// Tiles are numbered with time slowest, and blocks draw numbers from a counter, in rising order: a
// tile waits for lower numbers alone, and the lowest unfinished one waits for nobody. So the scan
// ends however many blocks run at once.
#pragma once

#include <cuda_pipeline.h>

#include <cuda/atomic>

#include "kernels/rg_lru/rg_lru_math.cuh"
#include "kernels/rg_lru/rg_lru_plan.h"

namespace eyrie::rg_lru {

inline constexpr int kWarps = 8, kThreads = 32 * kWarps;
inline constexpr int kSteps = kRows / kWarps;  // tokens of a warp
inline constexpr int kStrip = 32;              // channels that one warp links
inline constexpr int kLinkWarps = kColumns / kStrip;
inline constexpr int kLoaders = kThreads - 32 * kLinkWarps;  // the other warps load
inline constexpr int kGroup = 8;                             // tiles of a group

struct Tile {
  template <bool kReverse>
  __device__ static Tile Number(const Plan& plan, int number) {
    const int order = number / (plan.batch * plan.blocks);
    const int place = number % (plan.batch * plan.blocks);
    const int chunk = kReverse ? plan.orders - 1 - order : order;
    return {place / plan.blocks, chunk * kRows, place % plan.blocks * kColumns, order,
            place * kColumns};
  }
  // False of a number beyond the last tile's.
  __device__ bool exists(const Plan& plan) const { return order < plan.orders; }
  // Channels of the tile that exist.
  __device__ int count(const Plan& plan) const {
    const int left = plan.channels - channel;
    return left < kColumns ? left : kColumns;
  }
  // Of a [B, T, R] tensor, the element (b, t, first channel).
  __device__ int64_t Offset(const Plan& plan, int t) const {
    return (int64_t{b} * plan.time + t) * plan.channels + channel;
  }

  int b;        // sequence
  int t;        // first token
  int channel;  // first channel
  int order;    // in the scan
  int column;   // first of all sequences' channels
};

// What tiles tell one another, in global memory. At the start all its bits are set: the last ticket
// was -1, and every map's `a` is a NaN that no arithmetic gives, which says "not there yet". A map
// is written and read as one, so it needs no flag beside it.
struct Board {
  static constexpr unsigned kAbsent = 0xffffffffu, kNaN = 0x7fffffffu;
  int* ticket;  // the number of the tile drawn last
  Affine*
      maps;  // [orders, columns] of a tile; of a group's last tile: constant, the state after it

  explicit Board(float* workspace)
      : ticket(reinterpret_cast<int*>(workspace)),
        maps(reinterpret_cast<Affine*>(workspace + kBoardHead)) {}
  void Clear(const Plan& plan) const {
    EYRIE_CUDA_CHECK(cudaMemsetAsync(
        ticket, 0xff, static_cast<size_t>(BoardSize(plan)) * sizeof(float), ComputeStream()));
  }
  // The number of a tile that nobody has drawn.
  __device__ int Draw() const { return atomicAdd(ticket, 1) + 1; }
};

// One lane's view of the board: the column of one channel.
class BoardColumn {
 public:
  __device__ BoardColumn(const Plan& plan, const Board& board, int column)
      : maps_(board.maps + column), columns_(plan.columns()) {}

  __device__ void Publish(int order, Affine map) const {
    const unsigned a = isnan(map.a) ? Board::kNaN : __float_as_uint(map.a);
    Entry(order).store(uint64_t{__float_as_uint(map.x)} << 32 | a, cuda::memory_order_relaxed);
  }
  __device__ Affine Read(int order) const {
    const uint64_t entry = Entry(order).load(cuda::memory_order_relaxed);
    return {__uint_as_float(static_cast<unsigned>(entry)),
            __uint_as_float(static_cast<unsigned>(entry >> 32))};
  }
  __device__ static bool Absent(Affine map) { return __float_as_uint(map.a) == Board::kAbsent; }

 private:
  using EntryRef = cuda::atomic_ref<uint64_t, cuda::thread_scope_device>;
  __device__ EntryRef Entry(int order) const {
    return EntryRef(reinterpret_cast<uint64_t*>(maps_)[order * columns_]);
  }
  Affine* maps_;
  int columns_;
};

// What a lane reads on the board to learn the state before tile `order` of its column: entry 0 is
// what the group before handed on, then come the maps of the group's tiles before this one.
struct LookBack {
  __device__ LookBack(const BoardColumn& column, int order)
      : member(order % kGroup), first(order - member - 1) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      maps[i] = i <= member && first + i >= 0 ? column.Read(first + i) : Affine{1, 0};
    }
  }
  // Reads again what was not there yet, until it is.
  __device__ float State(const BoardColumn& column, float initial) {
    float state = initial;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      while (BoardColumn::Absent(maps[i])) maps[i] = column.Read(first + i);
      state = Apply(maps[i], state);
    }
    return state;
  }

  int member, first;
  Affine maps[kGroup];
};

// Called by the link warps. Turns `maps`, those of the tile's warps in the order of the scan, into
// the states that the warps start from (.x). `first` [B, R], optional, is the state before the
// first tile; `last` [B, R], optional, receives the one after the last. Publishes what the tiles
// after it need as early as possible.
__device__ __forceinline__ void Link(const Plan& plan, const Board& board, const Tile& tile,
                                     Affine (*maps)[kColumns], const float* first, float* last) {
  const int c = threadIdx.x, channel = tile.channel + c;
  const int64_t state_index = int64_t{tile.b} * plan.channels + channel;
  const bool exists = channel < plan.channels, awaited = tile.order + 1 < plan.orders;
  const bool hands_on = tile.order % kGroup == kGroup - 1;

  const BoardColumn column(plan, board, tile.column + c);
  LookBack look_back(column, tile.order);
  Affine own = maps[0][c];
#pragma unroll 4
  for (int w = 1; w < kWarps; ++w) own = Then(own, maps[w][c]);
  if (awaited && !hands_on) column.Publish(tile.order, own);
  float state = look_back.State(column, first != nullptr && exists ? first[state_index] : 0);
  if (awaited && hands_on) column.Publish(tile.order, {0, Apply(own, state)});
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
  float rate[kColumns];  // l = rate * r, see Rate; 0 where there is no channel
  int positions[kRows];  // -1 where there is no token
};

// Called by the loading warps, `loader` in [0, kLoaders): fetches tokens [t, t + kRows) of the
// tile's channels, zeros where there is no such token or channel. With kVectors, complete only
// after a wait for the pipeline.
template <bool kVectors, class T>
__device__ __forceinline__ void LoadTile(const Plan& plan, const Tile& tile, int loader, int t,
                                         const T* tensor, T (*to)[kColumns]) {
  constexpr int kWidth = kVectors ? kVectorWidth<T> : 1;
  constexpr int kPieces = kColumns / kWidth;   // of a row
  constexpr int kStride = kLoaders / kPieces;  // rows that are loaded at once
  static_assert(kLoaders % kPieces == 0);
  const int c = loader % kPieces * kWidth, first = loader / kPieces;
  const T* from = tensor + tile.Offset(plan, t + first) + c;
  const int64_t step = int64_t{kStride} * plan.channels;
  const bool whole = t >= 0 && t + kRows <= plan.time && tile.count(plan) == kColumns;
  if (kVectors && whole) {
#pragma unroll
    for (int i = 0; i < kRows; i += kStride, from += step) {
      if (i + kStride > kRows && first + i >= kRows) break;
      __pipeline_memcpy_async(&to[first + i][c], from, 16);
    }
    return;
  }
  const bool column_exists = c < tile.count(plan);
#pragma unroll 1
  for (int row = first; row < kRows; row += kStride, from += step) {
    const bool exists = column_exists && t + row >= 0 && t + row < plan.time;
    const T* source = exists ? from : tensor;
    if constexpr (kVectors) {
      __pipeline_memcpy_async(&to[row][c], source, 16, exists ? 0 : 16);
    } else {
      to[row][c] = exists ? *source : FromFloat<T>(0);
    }
  }
}
__device__ __forceinline__ void LoadFacts(const Plan& plan, const Tile& tile, int loader,
                                          const float* lambda, const int* positions,
                                          TileFacts& to) {
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
    vector.SetPair(0, pair[0], pair[1]);
    StoreVector(row + c, vector);
  } else {
    if (c < count) row[c] = FromFloat<T>(pair[0]);
    if (c + 1 < count) row[c + 1] = FromFloat<T>(pair[1]);
  }
}

// Whether all tokens of a warp, its rows [first, first + kSteps) of a tile, are inside a document.
__device__ __forceinline__ bool AllInside(const TileFacts& facts, int first) {
  return __all_sync(~0u, facts.positions[first + threadIdx.x % kSteps] > 0);
}

// Takes a block through its tiles, by the phases above; each is called as phase(stage, tile) by
// the warps that it concerns. With two stages of inputs a tile is loaded during the one before it,
// and `finish` must not read the inputs. `tiles` is shared memory, where phases find their tile
// again rather than keep it in registers: a ring of the one in hand and those that are loading.
template <bool kReverse, int kSlots, class Load, class Map, class LinkPhase, class Finish>
__device__ __forceinline__ void ForTiles(const Plan& plan, const Board& board,
                                         Tile (&tiles)[kSlots], const Load& load, const Map& map,
                                         const LinkPhase& link, const Finish& finish) {
  constexpr int kStages = kSlots - 1;
  static_assert(kStages == 1 || kStages == 2);
  const int loader = static_cast<int>(threadIdx.x) - 32 * kLinkWarps;
  const auto start_loading = [&](int stage, const Tile& tile) {
    if (loader >= 0 && tile.exists(plan)) load(stage, tile, loader);
    __pipeline_commit();
  };
  if (loader == 0) {
    for (int i = 0; i < kStages; ++i) tiles[i] = Tile::Number<kReverse>(plan, board.Draw());
  }
  __syncthreads();
#pragma unroll 1
  for (int stage = 0; stage < kStages; ++stage) start_loading(stage, tiles[stage]);

#pragma unroll 1
  for (int stage = 0, slot = 0;; stage = (stage + 1) % kStages, slot = (slot + 1) % kSlots) {
    const Tile& tile = tiles[slot];
    if (!tile.exists(plan)) return;
    __pipeline_wait_prior(kStages - 1);
    __syncthreads();
    // The slot of the tile before, which everybody is done with.
    Tile& next = tiles[(slot + kStages) % kSlots];
    // The number is on its way during `map`.
    int number = 0;
    if (loader == 0) number = board.Draw();
    map(stage, tile);
    if (loader == 0) next = Tile::Number<kReverse>(plan, number);
    __syncthreads();
    if constexpr (kStages == 2) start_loading(stage, next);
    if (loader < 0) link(stage, tile);
    __syncthreads();
    finish(stage, tile);
    if constexpr (kStages == 1) {
      __syncthreads();
      start_loading(stage, next);
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
