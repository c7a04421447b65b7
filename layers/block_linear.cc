#include "layers/block_linear.h"

namespace eyrie {

void BlockLinear::Declare(Declaration& declare) {
  const int64_t g = options_.blocks, maps = options_.maps;
  EYRIE_CHECK(!options_.bias || (maps == 1 && options_.spread == 0));
  block_ = options_.width / g;
  outputs_ = maps * block_;
  spread_ = options_.spread == 0 ? outputs_ : options_.spread;
  width_ = options_.width / declare.tensor_size;
  blocks_ = g / declare.tensor_size;
  const Shape one{g, block_, block_}, several{g, maps, block_, block_};
  weight_ = declare.params.Add({.name = declare.prefix + options_.name + ".w",
                                .shape = maps == 1 ? one : several,
                                .shard_axis = 0,
                                .weight_decay = true,
                                .init = InitNormal(options_.init_std)});
  if (!options_.bias) return;
  bias_ = declare.params.Add({.name = declare.prefix + options_.name + ".b",
                              .shape = {g, block_},
                              .shard_axis = 0,
                              .init = InitConstant(0.0)});
}

GemmArgs BlockLinear::Product(const Run& run, const Tensor& x, const Tensor& y) const {
  return {.trans_b = Trans::kYes,
          .m = x.size() / width_,
          .n = outputs_,
          .k = block_,
          .a = x,
          .lda = width_,
          .b = run.params.value(weight_),
          .ldb = block_,
          .c = y,
          .ldc = blocks_ * spread_,
          .bias = options_.bias ? run.params.value(bias_) : Tensor{},
          .batch = blocks_,
          .stride_a = block_,
          .stride_b = outputs_ * block_,
          .stride_c = spread_,
          .b_is_settled = true};
}

void BlockLinear::Forward(Run& run, const Tensor& x, const Tensor& y) const {
  Gemm(Product(run, x, y));
}

void BlockLinear::BackwardInput(Run& run, const Tensor& dy, const Tensor& dx,
                                bool accumulate) const {
  Gemm({.m = dx.size() / width_,
        .n = block_,
        .k = outputs_,
        .a = dy,
        .lda = blocks_ * spread_,
        .b = run.params.value(weight_),
        .ldb = block_,
        .c = dx,
        .ldc = width_,
        .accumulate = accumulate,
        .batch = blocks_,
        .stride_a = spread_,
        .stride_b = outputs_ * block_,
        .stride_c = block_});
}

Tensor BlockLinear::BiasGradient(Run& run) const {
  return options_.bias ? run.params.grad(bias_).View({width_}) : Tensor{};
}

void BlockLinear::BackwardWeight(Run& run, const Tensor& x, const Tensor& dy) const {
  const ParamStore::GradientSum sum = run.params.AddTo(weight_);
  Gemm({.trans_a = Trans::kYes,
        .m = outputs_,
        .n = block_,
        .k = x.size() / width_,
        .a = dy,
        .lda = blocks_ * spread_,
        .b = x,
        .ldb = width_,
        .c = sum.tensor,
        .ldc = block_,
        .accumulate = sum.started,
        .batch = blocks_,
        .stride_a = spread_,
        .stride_b = block_,
        .stride_c = outputs_ * block_});
}

}  // namespace eyrie
