// How the mLSTM's CUDA bodies cut their work, and the scratch that takes (mlstm_kernels.cuh says
// what for): host code of every build, so that a run on GPUs can be planned without one.
#pragma once

#include "kernels/cuda_partition.h"
#include "kernels/mlstm/mlstm.h"

namespace eyrie {

inline constexpr int kMlstmTile = 64;

// The values per block of the tensor cores' pass.
constexpr int MlstmBlockValues(int keys) { return keys > 256 ? 64 : 128; }

// Tokens, heads and where their rows lie.
struct MlstmLayout {
  int sequences, tokens, heads, keys, values;  // keys: dk, values: dv
  int tiles;                                   // ceil(tokens / kMlstmTile)
  int chunk_tiles, chunks;                     // tiles of a chunk; how many chunks there are
  const int32_t* positions;

  EYRIE_HOST_DEVICE int all_heads() const { return sequences * heads; }
  // Per token vectors in the workspace are [B, H, tiles * kMlstmTile].
  EYRIE_HOST_DEVICE int64_t padded() const { return int64_t{tiles} * kMlstmTile; }
  // The index of a token and head in tensors [B, T, H].
  EYRIE_HOST_DEVICE int64_t Row(int head, int token) const {
    return (static_cast<int64_t>(head / heads) * tokens + token) * heads + head % heads;
  }
  // Equal for tokens of the same document: the index of its first token, -1 before the first one.
  EYRIE_HOST_DEVICE int Document(int head, int token) const {
    const int position = positions[static_cast<int64_t>(head / heads) * tokens + token];
    return token < position ? -1 : token - position;
  }
};

// What a pass needs of the gates, in the workspace.
struct MlstmVectors {
  // Of scores: exp(row_t - column_s) is the weight of token s in token t of its tile. Where tokens
  // go one by one, `row` is exp(f_t + m_{t-1} - m_t) - 1 instead.
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
  const int64_t slices = std::min(CeilDiv(values, tensor_cores ? MlstmBlockValues(keys) : 32),
                                  CeilDiv(keys, tensor_cores ? MlstmBlockValues(values) : 32));
  const int64_t blocks = std::max<int64_t>(1, q.dim(0) * q.dim(2) * slices);
  const int64_t filled = (tensor_cores ? 1 : 4) * kPlannedMultiprocessors;
  const int64_t wanted = std::max<int64_t>(1, filled / blocks);
  const int64_t shortest = tensor_cores ? 4 : 2;
  const int64_t count = std::min(wanted, CeilDiv(tiles, shortest));
  return CeilDiv(tiles, count);
}

inline MlstmLayout MlstmLayoutOf(const Tensor& q, const Tensor& v, const int32_t* positions,
                                 const MlstmOptions& options) {
  const int64_t tiles = CeilDiv(q.dim(1), kMlstmTile);
  const int64_t chunk_tiles = MlstmChunkTiles(q, v, options);
  return {.sequences = static_cast<int>(q.dim(0)),
          .tokens = static_cast<int>(q.dim(1)),
          .heads = static_cast<int>(q.dim(2)),
          .keys = static_cast<int>(q.dim(3)),
          .values = static_cast<int>(v.dim(3)),
          .tiles = static_cast<int>(tiles),
          .chunk_tiles = static_cast<int>(chunk_tiles),
          .chunks = static_cast<int>(CeilDiv(tiles, chunk_tiles)),
          .positions = positions};
}

// Where a call keeps what in its workspace. Where `base` is null, only `total` means anything.
struct MlstmScratch {
  MlstmScratch(const MlstmLayout& sizes, bool tensor_cores, float* base) : next_(base) {
    const int64_t heads = sizes.all_heads(), tokens = heads * sizes.padded();
    const int64_t width = sizes.keys, state = width * sizes.values;
    for (float** vector :
         {&vectors.row, &vectors.column, &vectors.before, &vectors.after,
          &vectors.before_normaliser, &vectors.inverse_b, &vectors.dnormaliser, &excess}) {
      *vector = Take(tokens);
    }
    vectors.log_decay = Take(heads * sizes.tiles);
    step = Take(4 * heads);
    product = Take(heads);
    last_c = Take(heads * state);
    last_n = Take(heads * width);
    if (tensor_cores) {
      const int64_t scores = heads * sizes.tiles * kMlstmTile * kMlstmTile / 2;
      w = Take(scores);
      p = Take(scores);
      normaliser_states = Take(heads * sizes.tiles * width);
    }
    if (sizes.chunks > 1) {
      states = Take(heads * sizes.chunks * state);
      extra_states = Take(heads * sizes.chunks * width);
    }
  }

  MlstmVectors vectors{};
  float* excess;                       // per token
  float *step, *product;               // of a single token; [B, H]
  float *last_c, *last_n;              // the state after the last token
  void *w = nullptr, *p = nullptr;     // bfloat16 [B, H, tiles, kMlstmTile, kMlstmTile]
  float* normaliser_states = nullptr;  // [B, H, tiles, dk]
  float *states = nullptr, *extra_states = nullptr;  // [B, H, chunks, ...]
  int64_t total = 0;                                 // float32 elements

 private:
  // Aligned for vectors.
  float* Take(int64_t count) {
    float* taken = next_ == nullptr ? nullptr : next_ + total;
    total += CeilDiv(count, 64) * 64;
    return taken;
  }
  float* next_;
};

}  // namespace eyrie
