// The CUDA bodies behind slstm.h; arguments are already validated.
#pragma once

#include "kernels/slstm/slstm.h"

namespace eyrie {

// Where the backward pass keeps what in its workspace, in float32 elements.
struct SlstmBackwardScratch {
  explicit SlstmBackwardScratch(const Tensor& x)
      : cells(x.size() / 4),
        slope(4 * cells),
        c(slope + cells),
        n(c + cells),
        carry(n + cells),
        entering(carry + 2 * x.dim(0) * x.dim(2) * x.dim(4)),
        total(entering + cells) {}
  int64_t cells;        // B T H d
  int64_t slope, c, n;  // [B, T, H, d], after the gates [B, T, H, 4, d]
  int64_t carry;        // [2, B, H, d]
  int64_t entering;     // [B, T, H, d] in the activations' type
  int64_t total;
};

void SlstmForwardCuda(const SlstmForwardArgs& args);
void SlstmBackwardCuda(const SlstmBackwardArgs& args);

}  // namespace eyrie
