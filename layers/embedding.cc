#include "layers/embedding.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/blas.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/embedding/embedding.h"
#include "layers/columns.h"

namespace eyrie {
namespace {

// Tokens whose logits exist at once.
constexpr int64_t kPieceTokens = 4096;

}  // namespace

ParamId Embedding::DeclareTable(Declaration& declare, const char* name) const {
  return declare.params.Add({.name = declare.prefix + name,
                             .shape = {options_.vocab_size, options_.width},
                             .shard_axis = 0,
                             .weight_decay = true,
                             .init = InitNormal(std::sqrt(options_.variance))});
}

void Embedding::Declare(Declaration& declare) {
  local_vocab_ = options_.vocab_size / declare.tensor_size;
  table_ = head_ = DeclareTable(declare, "tok.w");
}

void Embedding::DeclareHead(Declaration& declare) {
  if (!options_.tied) head_ = DeclareTable(declare, "head.w");
}

void Embedding::LookUp(Run& run, const Tensor& tokens, const Tensor& y) const {
  EmbeddingForward({.tokens = tokens,
                    .table = run.params.value(table_),
                    .first_row = FirstRow(run),
                    .scale = options_.scale,
                    .y = y});
  run.mesh.tensor().AllReduce(y, ReduceOp::kSum).Wait();
}

void Embedding::LookUpBackward(Run& run, const Tensor& tokens, const Tensor& dy) const {
  ArenaScope scope(run.arena);
  const Tensor dtable = run.params.grad(table_);
  EmbeddingBackward({.tokens = tokens,
                     .first_row = FirstRow(run),
                     .scale = options_.scale,
                     .dy = dy,
                     .dtable = dtable,
                     .workspace = run.Workspace(EmbeddingBackwardWorkspace(tokens, dtable))});
}

void Embedding::PartialLogits(Run& run, const Tensor& x, const Tensor& u) const {
  Gemm({.trans_b = Trans::kYes,
        .m = x.size() / options_.width,
        .n = local_vocab_,
        .k = options_.width,
        .a = x,
        .lda = options_.width,
        .b = run.params.value(head_),
        .ldb = options_.width,
        .c = u,
        .ldc = local_vocab_,
        .b_is_settled = true});
}

Loss ReadLoss(const Tensor& loss) {
  double sums[2];
  Copy(loss, Tensor{sums, DType::kF64, Device::kCpu, {2}});
  return {.sum = sums[0], .valid = static_cast<int64_t>(sums[1])};
}

void Embedding::HeadLoss(Run& run, const Tensor& x, const Tensor& labels, double scale,
                         const Tensor& loss, const Tensor& dx, const Tensor& predicted) const {
  const int64_t width = options_.width, tokens = labels.size(), first = FirstRow(run);
  const Tensor all_x = x.View({tokens, width}), all_labels = labels.View({tokens});
  Communicator& tensor = run.mesh.tensor();
  const DType activations = run.params.dtype(), full = FullPrecision(activations);
  for (int64_t begin = 0; begin < tokens; begin += kPieceTokens) {
    ArenaScope scope(run.arena);
    const int64_t end = std::min(tokens, begin + kPieceTokens), rows = end - begin;
    const Tensor piece = all_x.Rows(begin, end), label = all_labels.Rows(begin, end);
    const Tensor logits = run.arena.Allocate(full, {rows, local_vocab_});
    const Tensor row_max = run.arena.Allocate(full, {rows});
    const Tensor partials = run.arena.Allocate(full, {2, rows});

    PartialLogits(run, piece, logits);
    SoftmaxPartials({.logits = logits,
                     .soft_cap = options_.soft_cap,
                     .labels = label,
                     .first = first,
                     .row_max = row_max,
                     .partials = partials});
    if (tensor.size() > 1) {
      const Tensor own_max = run.arena.Allocate(full, {rows});
      Copy(row_max, own_max);
      tensor.AllReduce(row_max, ReduceOp::kMax).Wait();
      RescalePartials(own_max, row_max, partials);
    }
    if (predicted.defined()) {
      const Tensor ids = predicted.View({tokens}).Rows(begin, end);
      RowArgmax({.logits = logits, .first = first, .row_max = row_max, .predicted = ids});
      tensor.AllReduce(ids, ReduceOp::kMax).Wait();
    }
    tensor.AllReduce(partials, ReduceOp::kSum).Wait();
    CrossEntropyLoss(label, row_max, partials, loss);
    if (!dx.defined()) continue;

    Tensor dlogits = logits;
    if (activations != full) dlogits = run.arena.Allocate(activations, logits.shape);
    CrossEntropyGrad({.logits = logits,
                      .labels = label,
                      .row_max = row_max,
                      .partials = partials,
                      .dlogits = dlogits,
                      .first = first,
                      .soft_cap = options_.soft_cap,
                      .scale = scale});
    Gemm({.m = rows,
          .n = width,
          .k = local_vocab_,
          .a = dlogits,
          .lda = local_vocab_,
          .b = run.params.value(head_),
          .ldb = width,
          .c = dx.View({tokens, width}).Rows(begin, end),
          .ldc = width});
    const ParamStore::GradientSum sum = run.params.AddTo(head_);
    Gemm({.trans_a = Trans::kYes,
          .m = local_vocab_,
          .n = width,
          .k = rows,
          .a = dlogits,
          .lda = local_vocab_,
          .b = piece,
          .ldb = width,
          .c = sum.tensor,
          .ldc = width,
          .accumulate = sum.started});
  }
  if (dx.defined()) tensor.AllReduce(dx, ReduceOp::kSum).Wait();
}

void Embedding::Logits(Run& run, const Tensor& x, const Tensor& logits) const {
  ArenaScope scope(run.arena);
  const int64_t rows = x.size() / options_.width;
  const bool whole = local_vocab_ == options_.vocab_size;
  const Tensor local = whole ? logits.View({rows, local_vocab_})
                             : run.arena.Allocate(logits.dtype, {rows, local_vocab_});
  PartialLogits(run, x, local);
  if (options_.soft_cap > 0) SoftCap(local, options_.soft_cap);
  if (!whole) GatherColumns(run, local, logits);
}

}  // namespace eyrie
