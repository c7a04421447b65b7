#include "layers/linear.h"

#include <vector>

#include "kernels/elementwise/elementwise.h"

namespace eyrie {

void Linear::Declare(Declaration& declare) {
  const bool columns = options_.cut == Cut::kColumns;
  const bool rows = options_.cut == Cut::kRows;
  local_out_ = columns ? options_.out / declare.tensor_size : options_.out;
  local_in_ = rows ? options_.in / declare.tensor_size : options_.in;
  weight_ =
      declare.params.Add({.name = declare.prefix + options_.name + ".w",
                          .shape = {options_.out, options_.in},
                          .shard_axis = columns ? 0
                                        : rows  ? 1
                                                : -1,
                          .partial_gradient = options_.cut == Cut::kWholePartialGradient,
                          .weight_decay = true,
                          .init = options_.init ? options_.init : InitNormal(options_.init_std)});
  if (!options_.bias) return;
  bias_ = declare.params.Add({.name = declare.prefix + options_.name + ".b",
                              .shape = {options_.out},
                              .shard_axis = columns ? 0 : -1,
                              .partial_gradient = options_.cut == Cut::kWholePartialGradient,
                              .init = InitConstant(0.0)});
}

GemmArgs Linear::Product(const Run& run, const Tensor& x, const Tensor& y) const {
  return {.trans_b = Trans::kYes,
          .m = x.size() / local_in_,
          .n = local_out_,
          .k = local_in_,
          .a = x,
          .lda = local_in_,
          .b = run.params.value(weight_),
          .ldb = local_in_,
          .c = y,
          .ldc = local_out_,
          .bias = options_.bias ? run.params.value(bias_) : Tensor{},
          .b_is_settled = true};
}

void Linear::Forward(Run& run, const Tensor& x, const Tensor& y) const {
  EYRIE_CHECK(options_.cut != Cut::kRows || !options_.bias);
  Gemm(Product(run, x, y));
  run.mesh.world().Progress();
}

void Linear::Forward(Run& run, const Tensor& x, const BranchOutput& out) const {
  EYRIE_CHECK(options_.cut == Cut::kRows);
  GemmArgs product = Product(run, x, out.y);
  // What is not a partial sum is added by one rank.
  if (run.mesh.tensor().rank() == 0) {
    product.added = out.residual;
  } else {
    product.bias = {};
  }
  Gemm(product);
  run.mesh.tensor().AllReduce(out.y, ReduceOp::kSum).Wait();
  run.mesh.world().Progress();
}

void ForwardTogether(Run& run, const Tensor& x, std::initializer_list<LinearOutput> layers) {
  std::vector<GemmArgs> products;
  for (const auto& [layer, y] : layers) products.push_back(layer->Product(run, x, y));
  Gemm(products);
  run.mesh.world().Progress();
}

void Linear::BackwardInput(Run& run, const Tensor& dy, const Tensor& dx, bool accumulate) const {
  Gemm({.m = dy.size() / local_out_,
        .n = local_in_,
        .k = local_out_,
        .a = dy,
        .lda = local_out_,
        .b = run.params.value(weight_),
        .ldb = local_in_,
        .c = dx,
        .ldc = local_in_,
        .accumulate = accumulate});
  run.mesh.world().Progress();
}

void Linear::BackwardWeight(Run& run, const Tensor& x, const Tensor& dy) const {
  BackwardWeightAlone(run, x, dy);
  if (!options_.bias) return;
  ArenaScope scope(run.arena);
  SumRows(dy, BiasGradient(run), run.Workspace(SumRowsWorkspace(dy)));
}

Tensor Linear::BiasGradient(Run& run) const {
  return options_.bias ? run.params.grad(bias_) : Tensor{};
}

void Linear::BackwardWeightAlone(Run& run, const Tensor& x, const Tensor& dy) const {
  const ParamStore::GradientSum sum = run.params.AddTo(weight_);
  Gemm({.trans_a = Trans::kYes,
        .m = local_out_,
        .n = local_in_,
        .k = x.size() / local_in_,
        .a = dy,
        .lda = local_out_,
        .b = x,
        .ldb = local_in_,
        .c = sum.tensor,
        .ldc = local_in_,
        .accumulate = sum.started});
  run.mesh.world().Progress();
}

}  // namespace eyrie
