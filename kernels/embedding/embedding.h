// Embedding look-up in a table sharded by rows: this rank holds rows [first_row, first_row + V)
// of the vocabulary; tokens outside give zeros, so that a sum over ranks completes the look-up.
// N tokens, width D. dtable has full precision, the others the activations' type: float32, on the
// CPU also float64, on a GPU also bfloat16.
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

// dtable[token - first_row] += scale * dy, in token order; on a GPU the rows of a token are added
// up first, in an order that depends on the tokens alone.
struct EmbeddingBackwardArgs {
  Tensor tokens;
  int64_t first_row = 0;
  double scale = 1.0;
  Tensor dy;         // [..., D], N rows
  Tensor dtable;     // [V, D] out, added to
  Tensor workspace;  // EmbeddingBackwardWorkspace(tokens, dtable) float32 elements
};
void EmbeddingBackward(const EmbeddingBackwardArgs& args);
// 0 on the CPU, where the workspace may be absent.
int64_t EmbeddingBackwardWorkspace(const Tensor& tokens, const Tensor& dtable);

}  // namespace eyrie
