#include "layers/embedding.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/blas.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/dispatch.h"
#include "kernels/embedding/embedding.h"

namespace eyrie {
namespace {

// Tokens whose logits exist at once.
constexpr int64_t kPieceTokens = 1024;

}  // namespace

void Embedding::Declare(Declaration& declare) {
  local_vocab_ = options_.vocab_size / declare.tensor_size;
  table_ = declare.params.Add(
      {.name = declare.prefix + "tok.w",
       .shape = {options_.vocab_size, options_.width},
       .shard_axis = 0,
       .weight_decay = true,
       .init = InitNormal(std::sqrt(1.0 / static_cast<double>(options_.width)))});
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
  const int64_t width = options_.width;
  DispatchCpu("head", x, [&](auto tag) {
    using T = decltype(tag);
    Gemm(Trans::kNo, Trans::kYes, x.size() / width, local_vocab_, width, T(1), x.data<T>(), width,
         run.params.value(table_).data<T>(), width, T(0), u.data<T>(), local_vocab_);
  });
}

Loss Embedding::HeadLoss(Run& run, const Tensor& x, const Tensor& labels, double scale,
                         const Tensor& dx) const {
  const int64_t width = options_.width, tokens = labels.size(), first = FirstRow(run);
  const Tensor all_x = x.View({tokens, width}), all_labels = labels.View({tokens});
  Communicator& tensor = run.mesh.tensor();
  const OwnedTensor loss(DType::kF64, {2});
  for (int64_t begin = 0; begin < tokens; begin += kPieceTokens) {
    ArenaScope scope(run.arena);
    const int64_t end = std::min(tokens, begin + kPieceTokens), rows = end - begin;
    const Tensor piece = all_x.Rows(begin, end), label = all_labels.Rows(begin, end);
    const Tensor logits = run.arena.Allocate(run.params.dtype(), {rows, local_vocab_});
    const Tensor row_max = run.arena.Allocate(run.params.dtype(), {rows});
    const Tensor partials = run.arena.Allocate(run.params.dtype(), {2, rows});

    PartialLogits(run, piece, logits);
    SoftCapRowMax({.logits = logits, .soft_cap = options_.soft_cap, .row_max = row_max});
    tensor.AllReduce(row_max, ReduceOp::kMax).Wait();
    SoftmaxPartials({.logits = logits,
                     .labels = label,
                     .first = first,
                     .row_max = row_max,
                     .partials = partials});
    tensor.AllReduce(partials, ReduceOp::kSum).Wait();
    CrossEntropyLoss(label, row_max, partials, loss.tensor);
    if (!dx.defined()) continue;

    CrossEntropyGrad({.logits = logits,
                      .labels = label,
                      .row_max = row_max,
                      .partials = partials,
                      .dlogits = logits,
                      .first = first,
                      .soft_cap = options_.soft_cap,
                      .scale = scale});
    DispatchCpu("head", x, [&](auto tag) {
      using T = decltype(tag);
      Gemm(Trans::kNo, Trans::kNo, rows, width, local_vocab_, T(1), logits.data<T>(), local_vocab_,
           run.params.value(table_).data<T>(), width, T(0),
           dx.View({tokens, width}).Rows(begin, end).data<T>(), width);
      Gemm(Trans::kYes, Trans::kNo, local_vocab_, width, rows, T(1), logits.data<T>(), local_vocab_,
           piece.data<T>(), width, T(1), run.params.grad(table_).data<T>(), width);
    });
  }
  if (dx.defined()) tensor.AllReduce(dx, ReduceOp::kSum).Wait();
  const double* sums = loss.tensor.data<double>();
  return {.sum = sums[0], .valid = static_cast<int64_t>(sums[1])};
}

void Embedding::Logits(Run& run, const Tensor& x, const Tensor& logits) const {
  ArenaScope scope(run.arena);
  const int64_t rows = x.size() / options_.width;
  const int ranks = run.mesh.tensor().size();
  const Tensor local = run.arena.Allocate(run.params.dtype(), {rows, local_vocab_});
  const Tensor row_max = run.arena.Allocate(run.params.dtype(), {rows});
  PartialLogits(run, x, local);
  SoftCapRowMax({.logits = local, .soft_cap = options_.soft_cap, .row_max = row_max});
  if (ranks == 1) return Copy(local, logits);
  const Tensor gathered = run.arena.Allocate(run.params.dtype(), {ranks, rows, local_vocab_});
  run.mesh.tensor().AllGather(local, gathered).Wait();
  for (int rank = 0; rank < ranks; ++rank) {
    const Slice columns{{0, rank * local_vocab_}, {rows, local_vocab_}};
    CopyPart(columns, columns, gathered.Rows(rank, rank + 1).raw,
             {{0, 0}, {rows, options_.vocab_size}}, logits.raw, SizeOf(logits.dtype));
  }
}

}  // namespace eyrie
