// Block-diagonal maps of blocks of four channels, as the mLSTM block makes its queries, keys and
// values (Beck et al., arXiv:2405.04517, figure 11): too small for matrix products, and bound by
// reading and writing the channels. x and y are [..., C], w is [C / 4, 4, 4], out by in; float32,
// on the CPU also float64, on a GPU also bfloat16, computing in float32.
#pragma once

#include "core/tensor.h"

namespace eyrie {

inline constexpr int64_t kBlockMapWidth = 4;

struct BlockMapArgs {
  Tensor x, w;
  Tensor y;                 // out: y[.., 4 g + o] = sum over i of w[g, o, i] x[.., 4 g + i]
  bool transposed = false;  // w[g, i, o] instead: the gradient of the input, of that of the output
  bool accumulate = false;  // y +=
};
void BlockMap(const BlockMapArgs& args);

struct BlockMapWeightGradArgs {
  Tensor x, dy;
  Tensor dw;  // += the sum over rows of dy[.., 4 g + o] x[.., 4 g + i]; has full precision
  Tensor workspace;
};
// Rows are summed in an order that depends on shapes alone.
void BlockMapWeightGrad(const BlockMapWeightGradArgs& args);
// The float32 elements of its workspace; 0 on the CPU, where it may be absent.
int64_t BlockMapWorkspace(const Tensor& x);

}  // namespace eyrie
