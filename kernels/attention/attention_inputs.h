// What both directions of the CPU body are made of: the inputs by sequence, products of a block
// with the keys it sees, and the spread of blocks over threads.
//
// B sequences, T tokens, H query heads, dh head width, P past rows; a block has R query rows
// (token, head) and N keys.
#pragma once

#include <cmath>
#include <memory>

#include "core/blas.h"
#include "core/tensor.h"
#include "core/threads.h"
#include "kernels/attention/attention_blocks.h"

namespace eyrie {

template <class T>
std::unique_ptr<T[]> Scratch(int64_t elements) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(elements));
}

// Rows of dh elements numbered by token, in two segments: the past (negative) and this chunk.
template <class T>
struct KeyRows {
  const T* past;     // [P, dh], the last row is token -1
  const T* current;  // [T, dh]
  int64_t past_rows, width;

  // Calls body(begin, end, rows) for each segment of [begin, end) that is not empty.
  template <class Body>
  void ForSegments(int64_t begin, int64_t end, const Body& body) const {
    if (begin < 0) body(begin, std::min<int64_t>(end, 0), past + (past_rows + begin) * width);
    if (end > 0) {
      const int64_t from = std::max<int64_t>(begin, 0);
      body(from, end, current + from * width);
    }
  }
};

// out[R, N] = alpha a[R, dh] keys^T.
template <class T>
void TimesKeysTransposed(const QueryBlock& block, T alpha, const T* a, const KeyRows<T>& keys,
                         T* out) {
  keys.ForSegments(block.key_begin, block.key_end, [&](int64_t begin, int64_t end, const T* rows) {
    Gemm(Trans::kNo, Trans::kYes, block.rows(), end - begin, keys.width, alpha, a, keys.width, rows,
         keys.width, T(0), out + (begin - block.key_begin), block.keys());
  });
}

// out[R, dh] = weights[R, N] keys.
template <class T>
void TimesKeys(const QueryBlock& block, const T* weights, const KeyRows<T>& keys, T* out) {
  keys.ForSegments(block.key_begin, block.key_end, [&](int64_t begin, int64_t end, const T* rows) {
    Gemm(Trans::kNo, Trans::kNo, block.rows(), keys.width, end - begin, T(1),
         weights + (begin - block.key_begin), block.keys(), rows, keys.width,
         T(begin == block.key_begin ? 0 : 1), out, keys.width);
  });
}

// The part of one sequence that both directions read.
template <class T>
struct AttentionInputs {
  template <class Args>
  explicit AttentionInputs(const Args& args)
      : extents{.sequences = args.q.dim(0),
                .tokens = args.q.dim(1),
                .heads = args.q.dim(2),
                .width = args.q.dim(3),
                .past = args.past_k.defined() ? args.past_k.dim(1) : 0,
                .window = args.window,
                .positions = args.positions.template data<int32_t>()},
        scale(static_cast<T>(1.0 / std::sqrt(static_cast<double>(extents.width)))),
        q(args.q.template data<T>()),
        k(args.k.template data<T>()),
        v(args.v.template data<T>()),
        past_k(args.past_k.template data<T>()),
        past_v(args.past_v.template data<T>()) {}

  KeyRows<T> Keys(int64_t b) const { return Rows(b, past_k, k); }
  KeyRows<T> Values(int64_t b) const { return Rows(b, past_v, v); }
  // The index of a block's first query row among those of all sequences.
  int64_t FirstRow(const QueryBlock& block) const {
    return block.sequence * extents.tokens * extents.heads + block.row_begin;
  }
  // Keys [begin, end) of the block that its row `r` sees, counted from the block's first key.
  struct Range {
    int64_t begin, end;
  };
  Range Visible(const QueryBlock& block, int64_t r) const {
    const int64_t t = (block.row_begin + r) / extents.heads;
    return {extents.FirstKey(block.sequence, t) - block.key_begin, t + 1 - block.key_begin};
  }

  AttentionExtents extents;
  T scale;
  const T *q, *k, *v, *past_k, *past_v;

 private:
  KeyRows<T> Rows(int64_t b, const T* past, const T* current) const {
    const int64_t width = extents.width;
    return {.past = past == nullptr ? nullptr : past + b * extents.past * width,
            .current = current + b * extents.tokens * width,
            .past_rows = extents.past,
            .width = width};
  }
};

// Spreads items over threads, each thread with `scratch` elements of its own: thread l takes
// items l, l + lanes, ..., which evens out the growing work of causal blocks. The items must be
// independent of each other.
template <class T, class Body>
void ForEachWithScratch(int64_t items, int64_t scratch, const Body& body) {
  const int64_t lanes = std::min<int64_t>(items, Threads());
  const std::unique_ptr<T[]> memory = Scratch<T>(lanes * scratch);
  ParallelFor(lanes, [&](int64_t lane) {
    for (int64_t item = lane; item < items; item += lanes) {
      body(static_cast<size_t>(item), memory.get() + lane * scratch);
    }
  });
}

}  // namespace eyrie
