// y = x W^T + b, whole, or cut over the tensor axis by outputs (column-parallel) or inputs
// (row-parallel): Shoeybi et al., "Megatron-LM", arXiv:1909.08053, section 3.
#pragma once

#include <initializer_list>
#include <string>

#include "core/blas.h"
#include "layers/layer.h"

namespace eyrie {

class Linear {
 public:
  enum class Cut {
    kColumns,  // each rank computes its share of the outputs from the whole input
    kRows,     // each rank adds its share to every output: the sum needs an all-reduce
    // Every rank computes all outputs, but uses them for its own heads only, so that its weight
    // gradient is a partial sum.
    kWholePartialGradient,
  };
  struct Options {
    std::string name;         // W is name.w [out, in], b is name.b [out]
    int64_t in = 0, out = 0;  // global
    // So many maps of one size in one parameter: W is [maps, out, in], and the functions take which
    // of them. Without a bias.
    int64_t maps = 1;
    // Column-parallel: elements of the rows of which x is the first `in` columns; 0: x is whole.
    int64_t row = 0;
    Cut cut = Cut::kColumns;
    bool bias = true;
    double init_std = 0.0;
    InitFn init = nullptr;  // of the weight, where it is not normal with init_std
  };

  explicit Linear(Options options) : options_(std::move(options)) {}

  void Declare(Declaration& declare);
  // Local widths, known once declared.
  int64_t local_in() const { return local_in_; }
  int64_t local_out() const { return local_out_; }

  // y [..., local out] := x W^T + b. Row-parallel, which must have no bias then: a partial sum over
  // the tensor axis.
  void Forward(Run& run, const Tensor& x, const Tensor& y, int64_t map = 0) const;
  // Row-parallel only: the end of a branch, complete on every tensor rank.
  void Forward(Run& run, const Tensor& x, const BranchOutput& out) const;
  // What Forward computes, as one product.
  GemmArgs Product(const Run& run, const Tensor& x, const Tensor& y, int64_t map = 0) const;
  // dx := dy W, or += with accumulate. Column-parallel: a partial sum over the tensor axis.
  void BackwardInput(Run& run, const Tensor& dy, const Tensor& dx, bool accumulate,
                     int64_t map = 0) const;
  // Adds the gradients of W and b.
  void BackwardWeight(Run& run, const Tensor& x, const Tensor& dy, int64_t map = 0) const;
  // The same in two parts, where the kernel that writes dy also sums its rows: what it adds them
  // to, the gradient of b (absent without a bias), and adding the gradient of W alone.
  Tensor BiasGradient(Run& run) const;
  void BackwardWeightAlone(Run& run, const Tensor& x, const Tensor& dy, int64_t map = 0) const;

 private:
  // The part of W, or of its gradient, that belongs to a map.
  Tensor OfMap(const Tensor& all, int64_t map) const {
    return options_.maps > 1 ? all.Rows(map, map + 1) : all;
  }

  Options options_;
  ParamId weight_ = -1, bias_ = -1;
  int64_t local_in_ = 0, local_out_ = 0;
  int64_t row_ = 0;  // of x
};

// Forward of several layers of the same x, each to its y; a GPU may run them as one.
struct LinearOutput {
  const Linear* layer;
  Tensor y;
};
void ForwardTogether(Run& run, const Tensor& x, std::initializer_list<LinearOutput> layers);

}  // namespace eyrie
