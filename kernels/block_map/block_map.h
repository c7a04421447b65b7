// Block-diagonal maps of blocks of four channels, as the mLSTM block makes its queries, keys and
// values (Beck et al., arXiv:2405.04517, figure 11): too small for matrix products, and bound by
// reading and writing the channels, so that all maps of one input are made together, and so are
// their gradients. x and y are [..., C], w is [C / 4, 4, 4], out by in, of full precision where it
// is a gradient; float32, on the CPU also float64, on a GPU also bfloat16, computing in float32.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace eyrie {

inline constexpr int64_t kBlockMapWidth = 4, kMostBlockMaps = 2;

// Gates may read the outputs: gates [.., G] = the sum over maps of y gates_w^T, for a few G, of y
// before it is rounded to its type.
struct BlockMapForwardArgs {
  struct Map {
    Tensor w;
    Tensor y;        // out: y[.., 4 g + o] = sum over i of w[g, o, i] x[.., 4 g + i]
    Tensor gates_w;  // [G, C], present where gates is
  };
  Tensor x;
  std::vector<Map> maps;          // one or two
  Tensor gates;                   // out: [.., G], of full precision, or absent
  bool accumulate_gates = false;  // gates +=
  Tensor workspace;               // BlockMapForwardWorkspace(x, G) float32 elements
};
void BlockMapForward(const BlockMapForwardArgs& args);
// 0 on the CPU and without gates.
int64_t BlockMapForwardWorkspace(const Tensor& x, int64_t gates);

// With `dgates`, the gates' gradient, each dy below stands for dy + dgates gates_w, a sum that is
// never written.
struct BlockMapBackwardArgs {
  struct Map {
    Tensor w, dy;
    Tensor dw;        // += the sum over rows of dy[.., 4 g + o] x[.., 4 g + i]
    Tensor gates_w;   // [G, C], present where dgates is
    Tensor dgates_w;  // [G, C] += dgates^T y, of full precision; present where dgates is
  };
  Tensor x;
  std::vector<Map> maps;  // one or two
  Tensor dgates;          // [.., G], or absent
  Tensor dx;  // out: [.., 4 g + i] = the sum over maps and o of w[g, o, i] dy[.., 4 g + o]
  bool accumulate = false;  // dx +=
  Tensor workspace;         // BlockMapBackwardWorkspace(x, maps.size(), G) float32 elements
};
// Rows are summed in an order that depends on shapes alone. No y is read or made again for
// dgates_w: it is the map of dgates^T x.
void BlockMapBackward(const BlockMapBackwardArgs& args);
// 0 on the CPU.
int64_t BlockMapBackwardWorkspace(const Tensor& x, int64_t maps, int64_t gates);

}  // namespace eyrie
