// The CUDA bodies behind embedding.h; arguments are already validated.
#pragma once

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "kernels/embedding/embedding.h"

namespace eyrie {

// How the workspace of the backward pass is laid out, for `count` tokens and rows of `width`
// numbers: where its parts start, each at a multiple of 256 bytes, and where it ends, in float32
// elements.
struct EmbeddingWorkspace {
  static constexpr int kPiece = 32;  // sorted positions of a warp: one a lane

  EmbeddingWorkspace(int64_t count, int64_t width) : pieces(CeilDiv(count, kPiece)) {
    // What CUB's radix sort of pairs of int32 asks for: the pairs once more, and counters of each
    // digit by block. The body checks that it is enough.
    sort_bytes = 12 * count + (int64_t{1} << 20);
    const auto take = [&](int64_t bytes) {
      const int64_t start = elements;
      elements += RoundUp(bytes, 256) / 4;
      return start;
    };
    for (int64_t& list : lists) list = take(count * 4);
    partial = take(2 * pieces * width * 4);
    sort = take(sort_bytes);
  }

  int64_t pieces, sort_bytes;
  int64_t lists[4] = {};  // keys, order, and both of them sorted
  int64_t partial = 0, sort = 0, elements = 0;
};

void EmbeddingForwardCuda(const EmbeddingForwardArgs& args);
void EmbeddingBackwardCuda(const EmbeddingBackwardArgs& args);

}  // namespace eyrie
