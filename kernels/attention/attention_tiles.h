// How the CUDA bodies cut attention into tiles. Everything here is constexpr: kernels and their
// host code call it, and so do tests on the CPU.
//
// Queries are rows as in attention_blocks.h: row = token * H + head. A block holds one tile of
// rows (queries, or keys where gradients of keys are computed) and streams tiles of the others.
#pragma once

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "kernels/mma_tiles.h"

namespace eyrie {

// The earliest key that `token` sees; the last one is the token itself.
template <class Int>
constexpr Int FirstVisibleKey(Int token, Int position, Int window, Int past) {
  Int steps = position < 0 ? Int{0} : position;
  if (window > 0 && steps > window) steps = window;
  return token - (steps < token + past ? steps : token + past);
}

// Tiles [begin, end) of a sequence of them.
struct TileRange {
  int begin, end;
};
// Part `part` of `parts`, all about equally large. Some are empty where there are more parts than
// tiles.
constexpr TileRange PartOf(TileRange all, int part, int parts) {
  const int64_t count = all.end - all.begin;
  return {all.begin + static_cast<int>(count * part / parts),
          all.begin + static_cast<int>(count * (part + 1) / parts)};
}

// What the rows of a tile see. The row of token t sees the keys from its first one to t.
struct Sight {
  int first_min, first_max;  // over the rows, of a row's first key
  int token_min, token_max;
  // Whether all rows see all keys of [begin, end).
  constexpr bool SeesAll(int begin, int end) const {
    return first_max <= begin && token_min >= end - 1;
  }
  // Tiles of `size` keys that cover what the rows see, from key first_min on.
  constexpr TileRange KeyTiles(int size) const {
    return {0, static_cast<int>(CeilDiv(token_max - first_min + 1, size))};
  }
};

// Keys [begin, end) in tiles of `size`, none of them with keys of both the past (negative) and this
// chunk, since these lie apart.
struct SegmentTiles {
  int begin, end, size;

  constexpr int past_tiles() const { return Tiles(begin, end < 0 ? end : 0); }
  constexpr int count() const { return past_tiles() + Tiles(first_current(), end); }
  // The keys of a tile are [First(tile), End(tile)).
  constexpr int First(int tile) const {
    const int past = past_tiles();
    return tile < past ? begin + tile * size : first_current() + (tile - past) * size;
  }
  constexpr int End(int tile) const {
    const int full = First(tile) + size, limit = tile < past_tiles() && end > 0 ? 0 : end;
    return full < limit ? full : limit;
  }

 private:
  constexpr int first_current() const { return begin > 0 ? begin : 0; }
  constexpr int Tiles(int from, int to) const {
    return to > from ? static_cast<int>(CeilDiv(int64_t{to} - from, size)) : 0;
  }
};

// Tiles of `size` query rows that hold all rows that may see keys [begin, end), given that no row
// sees further than the window.
constexpr TileRange RowTilesSeeing(int begin, int end, int tokens, int heads, int window,
                                   int size) {
  const int64_t first = begin < 0 ? 0 : begin;
  const int64_t last =
      window > 0 ? std::min<int64_t>(tokens - 1, int64_t{end} - 1 + window) : tokens - 1;
  if (last < first) return {0, 0};
  return {static_cast<int>(first * heads / size),
          static_cast<int>((last * heads + heads - 1) / size + 1)};
}

// Rows of the tile that a block holds, and of those that it streams.
struct TileSizes {
  int held, streamed;
};

struct AttentionTiles {
  // Whether the tensor cores do the products: bfloat16, rows of whole 16-byte vectors. Else plain
  // float32 arithmetic does, for any width that divides by 4.
  bool tensor_cores;
  TileSizes forward, backward;
};
// So that a block fits an A100's shared memory.
constexpr int ForwardStreamed(int padded_width) { return padded_width == 256 ? 32 : 64; }
constexpr int BackwardStreamed(int padded_width) { return padded_width == 256 ? 16 : 64; }
constexpr int kHeldByTensorCores = 128;
constexpr TileSizes kPlainTiles{32, 32};
// What is kept of a sequence's query rows for the backward pass is padded to a multiple of all
// tiles of streamed ones.
constexpr int kRecordRows = 64;
constexpr AttentionTiles TilesFor(bool bf16, int64_t width) {
  if (!bf16 || width % 8 != 0) return {false, kPlainTiles, kPlainTiles};
  return {true,
          {kHeldByTensorCores, ForwardStreamed(PaddedWidth(width))},
          {kHeldByTensorCores, BackwardStreamed(PaddedWidth(width))}};
}

// Sizes of a problem, as in attention.h.
struct AttentionSizes {
  int64_t sequences, tokens, heads, width, past, window;
  constexpr int64_t rows() const { return tokens * heads; }  // of one sequence
  constexpr int64_t records() const { return RoundUp(rows(), kRecordRows); }
  constexpr int64_t keys() const { return past + tokens; }
};

// Those of a forward or backward pass's arguments.
template <class Args>
AttentionSizes SizesOf(const Args& args) {
  const int64_t past = args.past_k.defined() ? args.past_k.dim(1) : 0;
  return {.sequences = args.q.dim(0),
          .tokens = args.q.dim(1),
          .heads = args.q.dim(2),
          .width = args.q.dim(3),
          .past = past,
          // As far as there are keys; 0, all of them, stays.
          .window = std::min(args.window, args.k.dim(1) + past)};
}

// Parts that the keys of a tile of queries are cut into, each for a block of its own: more than one
// where queries are too few to fill a GPU, as in decoding.
constexpr int ForwardParts(const AttentionSizes& sizes, TileSizes tiles) {
  const int64_t blocks = sizes.sequences * CeilDiv(sizes.rows(), tiles.held);
  if (blocks == 0 || blocks >= kPlannedMultiprocessors) return 1;
  int64_t keys = sizes.keys();
  if (sizes.window > 0) {
    keys = std::min(keys, sizes.window + 1 + CeilDiv(tiles.held, sizes.heads));
  }
  const int64_t wanted = CeilDiv(2 * kPlannedMultiprocessors, blocks);
  const int64_t most = std::max<int64_t>(1, keys / (2 * tiles.streamed));
  return static_cast<int>(std::min<int64_t>({wanted, most, 64}));
}

// float32 elements: o [parts, B, T, H, dh], then lse [parts, B, T, H]; nothing for one part.
constexpr int64_t ForwardWorkspaceSize(const AttentionSizes& sizes, TileSizes tiles) {
  const int64_t parts = ForwardParts(sizes, tiles);
  return parts == 1 ? 0 : parts * sizes.sequences * sizes.rows() * (sizes.width + 1);
}

// Parts that the query rows seeing a tile of keys are cut into. A sequence has few key tiles, and
// the first ones of a causal one have the most work: several blocks a multiprocessor even it out.
constexpr int BackwardParts(const AttentionSizes& sizes, TileSizes tiles) {
  const int64_t blocks = sizes.sequences * CeilDiv(sizes.keys(), tiles.held);
  if (blocks == 0) return 1;
  int64_t tokens = sizes.tokens;
  if (sizes.window > 0) tokens = std::min(tokens, sizes.window + tiles.held);
  const int64_t most = CeilDiv(tokens * sizes.heads, tiles.streamed);
  const int64_t wanted = CeilDiv(4 * kPlannedMultiprocessors, blocks);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({wanted, most, 16})));
}

// Where the backward pass keeps what in its workspace, in float32 elements.
struct BackwardWorkspace {
  int64_t records;  // [B, T * H, padded] of RowRecord, four elements each
  int64_t sights;   // [B, tiles of streamed rows] of (first_min, first_max), two elements each
  int64_t dk, dv;   // [parts, B, P + T, dh] each
  int64_t total;
};
constexpr BackwardWorkspace BackwardWorkspaceFor(const AttentionSizes& sizes, TileSizes tiles) {
  const int64_t row_tiles = sizes.sequences * CeilDiv(sizes.rows(), tiles.streamed);
  const int64_t sums = BackwardParts(sizes, tiles) * sizes.sequences * sizes.keys() * sizes.width;
  BackwardWorkspace at{};
  at.sights = 4 * sizes.sequences * sizes.records();
  at.dk = at.sights + RoundUp(2 * row_tiles, 4);
  at.dv = at.dk + sums;
  at.total = at.dv + sums;
  return at;
}

}  // namespace eyrie
