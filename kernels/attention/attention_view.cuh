// What the kernels of attention share: the problem as device code sees it, and what is known of a
// query row.
#pragma once

#include <climits>

#include "core/round.h"
#include "kernels/attention/attention_tiles.h"
#include "kernels/cuda_math.cuh"

namespace eyrie {

template <class T>
struct AttentionView {
  const T *q, *k, *v, *past_k, *past_v;
  const int32_t* positions;
  int sequences, tokens, heads, width, past, window;
  float scale;  // dh^-1/2

  __device__ int rows() const { return tokens * heads; }
  // Of a row, or of one with which the last rows are padded: where its record lies.
  __device__ int64_t Record(int b, int row) const {
    return b * RoundUp(int64_t{rows()}, kRecordRows) + row;
  }
  __device__ int FirstKey(int b, int t) const {
    return FirstVisibleKey<int>(t, positions[static_cast<int64_t>(b) * tokens + t], window, past);
  }
  // Row `row` of sequence b of a tensor shaped like q; null beyond the last one.
  template <class U>
  __device__ U* QueryRow(U* tensor, int b, int row) const {
    return row < rows() ? tensor + (static_cast<int64_t>(b) * rows() + row) * width : nullptr;
  }
  // The row of `key` of sequence b, out of keys or values; null from key `end` on.
  __device__ const T* KeyRow(const T* current, const T* before, int b, int key, int end) const {
    if (key >= end) return nullptr;
    const T* rows = key < 0 ? before + (static_cast<int64_t>(b) * past + past) * width
                            : current + static_cast<int64_t>(b) * tokens * width;
    return rows + static_cast<int64_t>(key) * width;
  }
};

// What the backward pass knows of a query row; what rows are padded with sees nothing.
struct alignas(16) RowRecord {
  float lse;        // in units of log 2
  float delta;      // dout . o
  int first, last;  // keys it sees, both included

  __device__ bool Sees(int key) const { return key >= first && key <= last; }
  // Whether the score of `key` matters: the probability of a single key is 1 whatever its score,
  // whose gradient dP - delta would be nothing but rounding.
  __device__ bool Weighs(int key) const { return Sees(key) && first < last; }
};

// The sight of the query rows [row_begin, row_begin + kRows) of sequence b. rows[r] receives the
// first and last key of a row; one beyond the last row sees nothing. All threads of the block call
// this; it waits for all of them.
template <int kRows, class T>
__device__ Sight LookAtRows(const AttentionView<T>& view, int b, int row_begin, int2* rows) {
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += static_cast<int>(blockDim.x)) {
    const int row = row_begin + r;
    int2 seen = make_int2(INT_MAX, INT_MIN);
    if (row < view.rows()) seen = make_int2(view.FirstKey(b, row / view.heads), row / view.heads);
    rows[r] = seen;
  }
  __syncthreads();
  int first_min = INT_MAX, first_max = INT_MIN;
  for (int r = static_cast<int>(threadIdx.x) % 32; r < kRows; r += 32) {
    if (row_begin + r >= view.rows()) continue;
    first_min = min(first_min, rows[r].x);
    first_max = max(first_max, rows[r].x);
  }
  const int last_row = min(row_begin + kRows, view.rows()) - 1;
  return {__reduce_min_sync(0xffffffffu, first_min), __reduce_max_sync(0xffffffffu, first_max),
          row_begin / view.heads, last_row / view.heads};
}

// Likewise, as one warp finds it, without the rows' own first and last keys.
template <int kRows, class T>
__device__ Sight SightOfRows(const AttentionView<T>& view, int b, int row_begin) {
  const int last_row = min(row_begin + kRows, view.rows()) - 1;
  const int begin = row_begin / view.heads, last = last_row / view.heads;
  int first_min = INT_MAX, first_max = INT_MIN;
  for (int token = begin + static_cast<int>(threadIdx.x) % 32; token <= last; token += 32) {
    const int first = view.FirstKey(b, token);
    first_min = min(first_min, first);
    first_max = max(first_max, first);
  }
  return {__reduce_min_sync(0xffffffffu, first_min), __reduce_max_sync(0xffffffffu, first_max),
          begin, last};
}

// The next tile of streamed rows from `tile` on, before `end`, that may see a key before key_end;
// `end` if there is none. sights: of the tiles of this sequence. The warp looks at 32 at a time.
__device__ inline int NextTileSeeing(const int2* sights, int key_end, int tile, int end) {
  for (; tile < end; tile += 32) {
    const int mine = tile + static_cast<int>(threadIdx.x) % 32;
    const unsigned found = __ballot_sync(0xffffffffu, mine < end && sights[mine].x < key_end);
    if (found != 0) return tile + __ffs(static_cast<int>(found)) - 1;
  }
  return end;
}
// The sight of such a tile of kRows rows.
template <int kRows, class T>
__device__ Sight SightOfTile(const AttentionView<T>& view, const int2* sights, int tile) {
  const int2 first = sights[tile];
  const int last_row = min((tile + 1) * kRows, view.rows()) - 1;
  return {first.x, first.y, tile * kRows / view.heads, last_row / view.heads};
}

// Where a forward kernel writes: to o and lse, or, if there are several parts, to float32 partial
// results, [parts, B, T, H, dh] and [parts, B, T, H].
template <class T>
struct ForwardOutputs {
  T* o;
  float* lse;
  float *partial_o, *partial_lse;  // null for one part
  int parts;
};

struct BackwardSums {
  float *dk, *dv;  // [parts, B, P + T, dh]
  int parts;
  // The row of `key` of sequence b in `sums`.
  template <class T>
  __device__ float* Row(const AttentionView<T>& view, float* sums, int part, int b, int key) const {
    const int64_t keys = view.past + view.tokens;
    return sums + ((static_cast<int64_t>(part) * view.sequences + b) * keys + view.past + key) *
                      view.width;
  }
};

}  // namespace eyrie
