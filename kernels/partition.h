// How CPU bodies cut their work so that results are the same however many threads there are: sums
// across pieces use pieces that depend on shapes alone, and are added in order; where pieces do
// depend on the number of threads, they neither share a sum nor move an element between the full
// vectors and the scalar remainder of a loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/round.h"
#include "core/threads.h"

namespace eyrie {

// Below this many elements, waking threads costs more than they save.
inline constexpr int64_t kSerialWork = 8192;
// The most channels that one task carries through time. Long rows stream well: the prefetcher
// starts anew with each.
inline constexpr int64_t kChannelBlock = 4096;
// Blocks of channels are a multiple of this, and so of any vector's width.
inline constexpr int64_t kChannelUnit = 64;
// At most this many partial sums over rows are kept.
inline constexpr int64_t kMaxRowTiles = 128;

// Calls body(piece) for each of `pieces`; `elements` is the size of the whole.
template <class Body>
void ForPieces(int64_t pieces, int64_t elements, const Body& body) {
  if (elements <= kSerialWork) {
    for (int64_t piece = 0; piece < pieces; ++piece) body(piece);
  } else {
    ParallelFor(pieces, body);
  }
}

// Calls body(begin, end) over [0, count) in pieces of kSerialWork.
template <class Body>
void ForElements(int64_t count, const Body& body) {
  ForPieces(CeilDiv(count, kSerialWork), count, [&](int64_t piece) {
    body(piece * kSerialWork, std::min(count, (piece + 1) * kSerialWork));
  });
}

// The width of equal blocks of channels, such that `batch` sequences make enough tasks for all
// threads, and a number of tasks that spreads evenly over them where tasks are few.
inline int64_t ChannelBlock(int64_t batch, int64_t channels) {
  const int64_t threads = Threads();
  int64_t blocks = CeilDiv(channels, kChannelBlock);
  while (batch * blocks < 4 * threads && batch * blocks % threads != 0) ++blocks;
  return RoundUp(CeilDiv(channels, blocks), kChannelUnit);
}

// Calls body(b, first_channel, channel_count) for each block of channels of each sequence of a
// [batch, time, channels] tensor. Channels must not depend on one another.
template <class Body>
void ForChannelBlocks(int64_t batch, int64_t time, int64_t channels, const Body& body) {
  if (batch * channels == 0) return;
  const int64_t block = ChannelBlock(batch, channels);
  const int64_t blocks = CeilDiv(channels, block);
  ForPieces(batch * blocks, batch * time * channels, [&](int64_t piece) {
    const int64_t first = piece % blocks * block;
    body(piece / blocks, first, std::min(block, channels - first));
  });
}

// Rows of a [rows, width] matrix in equal tiles (the last may be shorter).
struct RowTiles {
  RowTiles(int64_t row_count, int64_t row_width)
      : rows(row_count),
        width(row_width),
        tile(std::max(CeilDiv(rows, kMaxRowTiles),
                      CeilDiv(kSerialWork, std::max<int64_t>(width, 1)))),
        count(CeilDiv(rows, tile)) {}

  // Calls body(index, begin, end).
  template <class Body>
  void ForEach(const Body& body) const {
    ForPieces(count, rows * width, [&](int64_t index) {
      body(index, index * tile, std::min(rows, (index + 1) * tile));
    });
  }

  int64_t rows, width, tile, count;
};

// out[c] += scale * sum over rows of x[row, c], rows in order. `scale(c)` is asked once a channel.
template <class T, class Scale>
void AddRowSum(const T* x, int64_t rows, int64_t channels, T* out, const Scale& scale) {
  ForChannelBlocks(1, rows, channels, [&](int64_t, int64_t first, int64_t count) {
    T sum[kChannelBlock] = {};
    for (int64_t row = 0; row < rows; ++row) {
      const T* x_row = x + row * channels + first;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) sum[c] += x_row[c];
    }
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) out[first + c] += scale(first + c) * sum[c];
  });
}
template <class T>
void AddRowSum(const T* x, int64_t rows, int64_t channels, T* out) {
  AddRowSum(x, rows, channels, out, [](int64_t) { return T(1); });
}

}  // namespace eyrie
