#include "layers/linear.h"

#include <vector>

#include "kernels/elementwise/elementwise.h"

namespace eyrie {

void Linear::Declare(Declaration& declare) {
  const bool columns = options_.cut == Cut::kColumns;
  const bool rows = options_.cut == Cut::kRows, several = options_.maps > 1;
  EYRIE_CHECK(!(several && options_.bias) && (options_.row == 0 || columns));
  local_out_ = columns ? options_.out / declare.tensor_size : options_.out;
  local_in_ = rows ? options_.in / declare.tensor_size : options_.in;
  row_ = options_.row == 0 ? local_in_ : options_.row;
  const Shape one{options_.out, options_.in}, all{options_.maps, options_.out, options_.in};
  weight_ =
      declare.params.Add({.name = declare.prefix + options_.name + ".w",
                          .shape = several ? all : one,
                          .shard_axis = columns || rows ? (rows ? 1 : 0) + (several ? 1 : 0) : -1,
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

GemmArgs Linear::Product(const Run& run, const Tensor& x, const Tensor& y, int64_t map) const {
  return {.trans_b = Trans::kYes,
          .m = x.size() / row_,
          .n = local_out_,
          .k = local_in_,
          .a = x,
          .lda = row_,
          .b = OfMap(run.params.value(weight_), map),
          .ldb = local_in_,
          .c = y,
          .ldc = local_out_,
          .bias = options_.bias ? run.params.value(bias_) : Tensor{},
          .b_is_settled = true};
}

void Linear::Forward(Run& run, const Tensor& x, const Tensor& y, int64_t map) const {
  EYRIE_CHECK(options_.cut != Cut::kRows || !options_.bias);
  Gemm(Product(run, x, y, map));
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

void Linear::BackwardInput(Run& run, const Tensor& dy, const Tensor& dx, bool accumulate,
                           int64_t map) const {
  Gemm({.m = dy.size() / local_out_,
        .n = local_in_,
        .k = local_out_,
        .a = dy,
        .lda = local_out_,
        .b = OfMap(run.params.value(weight_), map),
        .ldb = local_in_,
        .c = dx,
        .ldc = row_,
        .accumulate = accumulate});
  run.mesh.world().Progress();
}

void Linear::BackwardWeight(Run& run, const Tensor& x, const Tensor& dy, int64_t map) const {
  BackwardWeightAlone(run, x, dy, map);
  if (!options_.bias) return;
  ArenaScope scope(run.arena);
  SumRows(dy, BiasGradient(run), run.Workspace(SumRowsWorkspace(dy)));
}

Tensor Linear::BiasGradient(Run& run) const {
  return options_.bias ? run.params.grad(bias_) : Tensor{};
}

void Linear::BackwardWeightAlone(Run& run, const Tensor& x, const Tensor& dy, int64_t map) const {
  // The first product of one of several maps does not write all of the sum.
  const ParamStore::GradientSum sum = options_.maps > 1
                                          ? ParamStore::GradientSum{run.params.grad(weight_), true}
                                          : run.params.AddTo(weight_);
  Gemm({.trans_a = Trans::kYes,
        .m = local_out_,
        .n = local_in_,
        .k = x.size() / row_,
        .a = dy,
        .lda = local_out_,
        .b = x,
        .ldb = row_,
        .c = OfMap(sum.tensor, map),
        .ldc = local_in_,
        .accumulate = sum.started});
  run.mesh.world().Progress();
}

}  // namespace eyrie
