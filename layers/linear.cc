#include "layers/linear.h"

#include "core/blas.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"

namespace eyrie {

void Linear::Declare(Declaration& declare) {
  const bool columns = options_.cut == Cut::kColumns;
  const bool rows = options_.cut == Cut::kRows;
  local_out_ = columns ? options_.out / declare.tensor_size : options_.out;
  local_in_ = rows ? options_.in / declare.tensor_size : options_.in;
  weight_ = declare.params.Add({.name = declare.prefix + options_.name + ".w",
                                .shape = {options_.out, options_.in},
                                .shard_axis = columns ? 0
                                              : rows  ? 1
                                                      : -1,
                                .partial_gradient = options_.cut == Cut::kWholePartialGradient,
                                .weight_decay = true,
                                .init = InitNormal(options_.init_std)});
  if (!options_.bias) return;
  bias_ = declare.params.Add({.name = declare.prefix + options_.name + ".b",
                              .shape = {options_.out},
                              .shard_axis = columns ? 0 : -1,
                              .partial_gradient = options_.cut == Cut::kWholePartialGradient,
                              .init = InitConstant(0.0)});
}

void Linear::Forward(Run& run, const Tensor& x, const Tensor& y) const {
  const int64_t rows = x.size() / local_in_;
  const bool add_bias = options_.bias && options_.cut != Cut::kRows;
  if (add_bias) BroadcastRows(run.params.value(bias_), y);
  DispatchCpu("linear", x, [&](auto tag) {
    using T = decltype(tag);
    Gemm(Trans::kNo, Trans::kYes, rows, local_out_, local_in_, T(1), x.data<T>(), local_in_,
         run.params.value(weight_).data<T>(), local_in_, add_bias ? T(1) : T(0), y.data<T>(),
         local_out_);
  });
}

void Linear::Reduce(Run& run, const Tensor& y) const {
  EYRIE_CHECK(options_.cut == Cut::kRows);
  run.mesh.tensor().AllReduce(y, ReduceOp::kSum).Wait();
  if (options_.bias) AddRow(run.params.value(bias_), y);
}

void Linear::BackwardInput(Run& run, const Tensor& dy, const Tensor& dx, bool accumulate) const {
  const int64_t rows = dy.size() / local_out_;
  DispatchCpu("linear", dy, [&](auto tag) {
    using T = decltype(tag);
    Gemm(Trans::kNo, Trans::kNo, rows, local_in_, local_out_, T(1), dy.data<T>(), local_out_,
         run.params.value(weight_).data<T>(), local_in_, accumulate ? T(1) : T(0), dx.data<T>(),
         local_in_);
  });
}

void Linear::BackwardWeight(Run& run, const Tensor& x, const Tensor& dy) const {
  const int64_t rows = x.size() / local_in_;
  DispatchCpu("linear", x, [&](auto tag) {
    using T = decltype(tag);
    Gemm(Trans::kYes, Trans::kNo, local_out_, local_in_, rows, T(1), dy.data<T>(), local_out_,
         x.data<T>(), local_in_, T(1), run.params.grad(weight_).data<T>(), local_in_);
  });
  if (!options_.bias) return;
  ArenaScope scope(run.arena);
  SumRows(dy, run.params.grad(bias_), run.Workspace(SumRowsWorkspace(dy)));
}

}  // namespace eyrie
