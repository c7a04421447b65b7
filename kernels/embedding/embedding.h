// Embedding look-up in a table sharded by rows: this rank holds rows [first_row, first_row + V)
// of the vocabulary; tokens outside give zeros, so that a sum over ranks completes the look-up.
// N tokens, width D. float32 or float64.
#pragma once

#include "core/tensor.h"

namespace eyrie {

struct EmbeddingForwardArgs {
  Tensor tokens;  // [N] elements in any shape, int32
  Tensor table;   // [V, D]
  int64_t first_row = 0;
  double scale = 1.0;  // multiplies the rows
  Tensor y;            // [..., D], N rows, out
};
void EmbeddingForward(const EmbeddingForwardArgs& args);

// dtable[token - first_row] += scale * dy, in token order: deterministic for any thread count.
struct EmbeddingBackwardArgs {
  Tensor tokens;
  int64_t first_row = 0;
  double scale = 1.0;
  Tensor dy;      // [..., D], N rows
  Tensor dtable;  // [V, D] out, added to
};
void EmbeddingBackward(const EmbeddingBackwardArgs& args);

}  // namespace eyrie
