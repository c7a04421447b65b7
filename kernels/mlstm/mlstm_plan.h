// How the mLSTM's CUDA bodies cut their work, and the scratch that takes (mlstm_kernels.cuh says
// what for): host code of every build, so that a run on GPUs can be planned without one.
#pragma once

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "kernels/mlstm/mlstm.h"

namespace eyrie {

inline constexpr int kMlstmTile = 64;

// The part of a state that a block of a pass has in registers; on the tensor cores with all keys of
// heads up to kMaxMlstmBlockKeys, else with a slice of them. Its threads have equal shares.
// Hopper's own kernel takes the passes that it would cut into as many blocks of as many elements.
inline constexpr int kMaxMlstmBlockKeys = 512;
inline constexpr int kMlstmPassWarps = 8, kMlstmPassThreads = 32 * kMlstmPassWarps;
struct MlstmBlock {
  int keys, values;

  // What is kept of it at a restart: the state, and of the further key up to 4 elements a thread.
  constexpr int64_t kept() const { return int64_t{keys} * values + 4 * kMlstmPassThreads; }
  int64_t slices(int all_keys) const { return CeilDiv(all_keys, keys); }
  int64_t count(int all_keys, int all_values) const {
    return slices(all_keys) * CeilDiv(all_values, values);
  }
};
constexpr MlstmBlock MlstmBlockOf(bool tensor_cores, int keys) {
  if (!tensor_cores) {
    const int widest = keys <= 512 ? 512 : static_cast<int>(kMaxMlstmCudaWidth);
    return {keys <= 32 ? 32 : keys <= 128 ? 128 : keys <= 256 ? 256 : widest, 32};
  }
  if (keys > 256 && keys <= kMaxMlstmBlockKeys) return {kMaxMlstmBlockKeys, 64};
  return {keys <= 64 ? 64 : keys <= 128 ? 128 : 256, 128};
}

// The sum that is the forget gates' gradient starts again at least so often; by products over
// chunks, after at least one of these.
inline constexpr int kMaxMlstmRestartTiles = 8;

// Products over chunks of wide heads (mlstm_chunks.h): tiles of a chunk, at most, and what a block
// computes of a state or of outputs, in clusters of two blocks of rows.
inline constexpr int kMaxMlstmChunkTiles = 8, kMlstmChunkRows = 128, kMlstmChunkColumns = 256;
EYRIE_HOST_DEVICE constexpr int MlstmRowBlocks(int rows) {
  return (rows + 2 * kMlstmChunkRows - 1) / (2 * kMlstmChunkRows) * 2;
}
EYRIE_HOST_DEVICE constexpr int MlstmColumnBlocks(int columns) {
  return CeilDiv(columns, kMlstmChunkColumns);
}
// The heads that they are for, on GPUs that can.
inline bool MlstmHasWideHeads(const Tensor& q, const Tensor& v) {
  return q.dtype == DType::kBF16 && std::max(q.dim(3), v.dim(3)) > kMaxMlstmBlockKeys;
}

// Tokens, heads and where their rows lie.
struct MlstmLayout {
  int sequences, tokens, heads, keys, values;  // keys: dk, values: dv
  int tiles;                                   // ceil(tokens / kMlstmTile)
  int chunk_tiles, chunks;                     // tiles of a chunk; how many chunks there are
  int restart_tiles, restarts;                 // tiles between two restarts; how many intervals
  int state_places;                            // by chunks: places of a head's states in memory
  const int32_t* positions;

  EYRIE_HOST_DEVICE int all_heads() const { return sequences * heads; }
  // Per token vectors in the workspace are [B, H, tiles * kMlstmTile].
  EYRIE_HOST_DEVICE int64_t padded() const { return int64_t{tiles} * kMlstmTile; }
  // The index of a token and head in tensors [B, T, H].
  EYRIE_HOST_DEVICE int64_t Row(int head, int token) const {
    return (static_cast<int64_t>(head / heads) * tokens + token) * heads + head % heads;
  }
  // Of the boundary before a tile, or after the last one: which restart it is, or -1.
  EYRIE_HOST_DEVICE int Restart(int tile) const {
    if (tile == tiles) return restarts;
    const int restart = tile / restart_tiles;
    return tile % restart_tiles == 0 && restart < restarts ? restart : -1;
  }
  // By chunks: where the state at a boundary lies, those between chunks first. What is left of a
  // state when it is rounded lies where none is kept, or last.
  EYRIE_HOST_DEVICE int StatePlace(int boundary) const {
    return (boundary + chunks) % (chunks + 1);
  }
  EYRIE_HOST_DEVICE int RestPlace(int chunks_before, bool reverse) const {
    return chunks_before > 0 ? chunks + 1 : StatePlace(reverse ? 0 : chunks);
  }
  // The same for a sequence that no state enters from either end.
  MlstmLayout OnItsOwn() const {
    MlstmLayout own = *this;
    own.state_places = std::max(1, chunks - 1);
    return own;
  }
  // Equal for tokens of the same document: the index of its first token, -1 before the first one.
  EYRIE_HOST_DEVICE int Document(int head, int token) const {
    const int position = positions[static_cast<int64_t>(head / heads) * tokens + token];
    return token < position ? -1 : token - position;
  }
};

// In how many parts a product of two states comes: one for each warp, of 16 rows and a block's
// columns.
EYRIE_HOST_DEVICE inline int MlstmStateParts(const MlstmLayout& sizes) {
  return MlstmRowBlocks(sizes.keys) * (kMlstmChunkRows / 16) * MlstmColumnBlocks(sizes.values);
}

// In how many parts MultiplyEnd() multiplies: one for so many rows of the state.
inline constexpr int kMlstmEndKeys = 16;
EYRIE_HOST_DEVICE inline int MlstmEndParts(const MlstmLayout& sizes) {
  return CeilDiv(sizes.keys, kMlstmEndKeys);
}
// Where the products of a part lie, [2, kMlstmTile].
EYRIE_HOST_DEVICE inline int64_t MlstmEndAt(const MlstmLayout& sizes, int head, int part) {
  return (static_cast<int64_t>(head) * MlstmEndParts(sizes) + part) * 2 * kMlstmTile;
}

// What a pass needs of the gates, in the workspace.
struct MlstmVectors {
  // Of scores: exp(row_t - column_s) is the weight of token s in token t of its tile. Where tokens
  // go one by one, their sum is exp(f_t + m_{t-1} - m_t) instead, with a column of 0 or 1.
  float *row, *column;
  float *before, *after;     // g_t (times 1 / b_t where inverse_b is given), w_t
  float* before_normaliser;  // g_t times the gradient of the normaliser; backward only
  float* inverse_b;          // 1 / b_t
  float* dnormaliser;
  float* log_decay;  // [B, H, tiles] of a tile: sum of f + m before - m after
};

// Tiles of a chunk. Unless the caller chooses, so many chunks that their blocks fill an H100, but
// none shorter than its state's two ways through memory are worth. The plain body needs more
// blocks, and time for each token. Depends on shapes alone, and so do the results.
inline int64_t MlstmChunkTiles(const Tensor& q, const Tensor& v, const MlstmOptions& options) {
  const int64_t tiles = CeilDiv(q.dim(1), kMlstmTile);
  if (options.chunk > 0) return std::min(tiles, CeilDiv(options.chunk, kMlstmTile));
  const int keys = static_cast<int>(q.dim(3)), values = static_cast<int>(v.dim(3));
  const bool tensor_cores = q.dtype == DType::kBF16;
  const int64_t of_head = std::min(MlstmBlockOf(tensor_cores, keys).count(keys, values),
                                   MlstmBlockOf(tensor_cores, values).count(values, keys));
  const int64_t blocks = std::max<int64_t>(1, q.dim(0) * q.dim(2) * of_head);
  const int64_t filled = (tensor_cores ? 1 : 4) * kPlannedMultiprocessors;
  const int64_t wanted = std::max<int64_t>(1, filled / blocks);
  const int64_t shortest = tensor_cores ? 4 : 2;
  const int64_t count = std::min(wanted, CeilDiv(tiles, shortest));
  return CeilDiv(tiles, count);
}

// Tiles between two restarts. The fewer, the smaller the errors, but the more states are kept:
// about 256 elements a token where the states are small, and for any of them 8 tiles apart.
inline int64_t MlstmRestartTiles(int64_t tiles, int64_t keys, int64_t values) {
  const int64_t worth = CeilDiv(keys * values, 256 * kMlstmTile);
  return std::min({int64_t{kMaxMlstmRestartTiles}, worth, CeilDiv(tiles, 4)});
}

// With `by_chunks` for products over chunks, which start again at the boundaries of whole ones, but
// not near the end: what enters the gradients there may be so much larger than all else that the
// rounding of a state multiplied with it would show.
inline MlstmLayout MlstmLayoutOf(const Tensor& q, const Tensor& v, const int32_t* positions,
                                 const MlstmOptions& options, bool by_chunks) {
  const int64_t tiles = CeilDiv(q.dim(1), kMlstmTile);
  const int64_t wanted = options.chunk > 0 ? CeilDiv(options.chunk, kMlstmTile) : tiles;
  const int64_t chunk_tiles = by_chunks ? std::min({int64_t{kMaxMlstmChunkTiles}, tiles, wanted})
                                        : MlstmChunkTiles(q, v, options);
  const int64_t restart_tiles =
      by_chunks ? chunk_tiles : MlstmRestartTiles(tiles, q.dim(3), v.dim(3));
  const int chunks = static_cast<int>(CeilDiv(tiles, chunk_tiles));
  return {.sequences = static_cast<int>(q.dim(0)),
          .tokens = static_cast<int>(q.dim(1)),
          .heads = static_cast<int>(q.dim(2)),
          .keys = static_cast<int>(q.dim(3)),
          .values = static_cast<int>(v.dim(3)),
          .tiles = static_cast<int>(tiles),
          .chunk_tiles = static_cast<int>(chunk_tiles),
          .chunks = chunks,
          .restart_tiles = static_cast<int>(restart_tiles),
          .restarts = static_cast<int>(by_chunks ? std::max<int64_t>(1, tiles / restart_tiles)
                                                 : CeilDiv(tiles, restart_tiles)),
          .state_places = chunks + 2,
          .positions = positions};
}

// Parts of memory from `base` on, aligned for vectors. Where that is null, only `total` means
// anything.
struct MlstmMemory {
  explicit MlstmMemory(float* base) : next_(base) {}
  float* Take(int64_t count) {
    float* taken = next_ == nullptr ? nullptr : next_ + total;
    total += RoundUp(count, 64);
    return taken;
  }
  int64_t total = 0;  // float32 elements

 private:
  float* next_;
};

// By chunks: states between them, bfloat16 [B, H, state_places, dk, dv], and normalisers' [B, H,
// chunks + 1, dk].
struct MlstmChunkMemories : MlstmMemory {
  MlstmChunkMemories(const MlstmLayout& sizes, float* base) : MlstmMemory(base) {
    const int64_t heads = sizes.all_heads();
    states = Take(heads * sizes.state_places * sizes.keys * sizes.values / 2);
    normalisers = Take(heads * (sizes.chunks + 1) * sizes.keys);
  }
  void* states;
  float* normalisers;
};

// Where a call keeps what in its workspace; or in `memories` of its own, if not null.
struct MlstmScratch : MlstmMemory {
  MlstmScratch(const MlstmLayout& sizes, bool tensor_cores, bool by_chunks, float* base,
               float* memories = nullptr)
      : MlstmMemory(base) {
    const int64_t heads = sizes.all_heads(), tokens = heads * sizes.padded();
    const int64_t width = sizes.keys, state = width * sizes.values;
    const int64_t all_restarts = heads * (sizes.restarts + 1);
    for (float** vector : {&vectors.row, &vectors.column, &vectors.before, &vectors.after,
                           &vectors.before_normaliser, &vectors.inverse_b, &vectors.dnormaliser}) {
      *vector = Take(tokens);
    }
    vectors.log_decay = Take(heads * sizes.tiles);
    step = Take(4 * heads);
    if (by_chunks) {
      const int64_t parts = MlstmColumnBlocks(sizes.keys);
      query_products = Take(tokens * parts);
      key_products = Take(tokens * parts);
      const int64_t scores = heads * sizes.chunks * sizes.chunk_tiles * sizes.chunk_tiles *
                             kMlstmTile * kMlstmTile / 2;
      w = Take(scores);
      p = Take(scores);
      float* own = Take(MlstmChunkMemories(sizes, nullptr).total);
      const MlstmChunkMemories kept(sizes, memories != nullptr ? memories : own);
      chunk_states = kept.states;
      normaliser_states = kept.normalisers;
      earlier_sums = Take(tokens);
      restart_parts = MlstmStateParts(sizes);
      restart_products = Take(all_restarts * restart_parts);
      return;
    }
    const MlstmBlock by_keys = MlstmBlockOf(tensor_cores, sizes.keys);
    const MlstmBlock by_values = MlstmBlockOf(tensor_cores, sizes.values);
    const int64_t key_slices = by_keys.slices(sizes.keys);
    const int64_t value_slices = by_values.slices(sizes.values);
    if (key_slices > 1 || value_slices > 1) {
      partial = Take(heads * sizes.tokens *
                     std::max(key_slices > 1 ? key_slices * sizes.values : 0,
                              value_slices > 1 ? value_slices * sizes.keys : 0));
    }
    const int64_t product_slices = tensor_cores ? CeilDiv(width, 16) : 1;  // at most
    query_products = Take(tokens * product_slices);
    key_products = Take(tokens * product_slices);
    // Of the passes over values, whose values are dk.
    const int64_t blocks = by_values.count(sizes.values, sizes.keys);
    restart_states = Take(all_restarts * blocks * by_values.kept());
    restart_parts = static_cast<int>(blocks * kMlstmPassWarps);
    restart_products = Take(all_restarts * restart_parts);
    if (tensor_cores) {
      const int64_t scores = heads * sizes.tiles * kMlstmTile * kMlstmTile / 2;
      w = Take(scores);
      p = Take(scores);
      normaliser_states = Take(heads * sizes.tiles * width);
      end_products = Take(heads * MlstmEndParts(sizes) * 2 * kMlstmTile);
    }
    if (sizes.chunks > 1) {
      states = Take(heads * sizes.chunks * state);
      extra_states = Take(heads * sizes.chunks * width);
    }
  }

  MlstmVectors vectors{};
  float* step;                           // of a single token
  float* partial = nullptr;              // [slices, B, T, H, dv or dk]
  float *query_products, *key_products;  // [B, H, slices, padded]
  float* restart_states = nullptr;       // [B, H, restarts + 1, blocks, ...]
  float* restart_products;               // [B, H, restarts + 1, restart_parts]
  int restart_parts;                     // of a product
  float* end_products = nullptr;         // [B, H, MlstmEndParts(), 2, kMlstmTile]
  void *w = nullptr, *p = nullptr;       // bfloat16 [B, H, tiles, kMlstmTile, kMlstmTile]
  float* normaliser_states = nullptr;    // [B, H, tiles, dk]
  // By chunks: MlstmChunkMemories, with scores [B, H, chunks, L, L] of all L tokens of a chunk.
  void* chunk_states = nullptr;
  float* earlier_sums = nullptr;                     // [B, H, padded], of MlstmChunkScores
  float *states = nullptr, *extra_states = nullptr;  // [B, H, chunks, ...]
};

}  // namespace eyrie
