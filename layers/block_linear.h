// y = x W^T + b with W block-diagonal: G blocks of channels, each mapped to itself. Blocks are cut
// over the tensor axis, and nothing crosses it. Through batched products: for small blocks
// there is kernels/block_map.
#pragma once

#include <string>

#include "core/blas.h"
#include "layers/layer.h"

namespace eyrie {

class BlockLinear {
 public:
  struct Options {
    std::string name;  // W is name.w [G, C / G, C / G], out by in; b is name.b [G, C / G]
    int64_t width = 0, blocks = 0;  // C and G, global
    // So many maps side by side: W is [G, maps, C / G, C / G], and a block's outputs are all maps'
    // C / G in turn. Without a bias.
    int64_t maps = 1;
    // How far the outputs of successive blocks lie apart in a row; 0: they follow one another.
    int64_t spread = 0;
    bool bias = false;
    double init_std = 0.0;
  };

  explicit BlockLinear(Options options) : options_(std::move(options)) {}

  void Declare(Declaration& declare);

  // y := x W^T + b for x [..., local C] and rows of y of local G x spread, from where y starts.
  void Forward(Run& run, const Tensor& x, const Tensor& y) const;
  // What Forward computes, as one product.
  GemmArgs Product(const Run& run, const Tensor& x, const Tensor& y) const;
  // dx := dy W, or += with accumulate.
  void BackwardInput(Run& run, const Tensor& dy, const Tensor& dx, bool accumulate) const;
  // Adds the gradient of W. That of b, to which the kernel that writes dy adds the sum of its rows,
  // is [local C]; absent without a bias.
  void BackwardWeight(Run& run, const Tensor& x, const Tensor& dy) const;
  Tensor BiasGradient(Run& run) const;

 private:
  Options options_;
  ParamId weight_ = -1, bias_ = -1;
  int64_t block_ = 0, outputs_ = 0, spread_ = 0;  // of one block
  int64_t width_ = 0, blocks_ = 0;                // local
};

}  // namespace eyrie
