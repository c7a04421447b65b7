#include "layers/columns.h"

namespace eyrie {

void CopyColumns(const Tensor& from, int64_t from_column, const Tensor& to, int64_t to_column,
                 int64_t count) {
  // Each row counts as a sequence, each column as a row of one element.
  const auto columns = [](const Tensor& tensor) {
    return tensor.View({tensor.size() / tensor.dim(-1), tensor.dim(-1), 1});
  };
  CopyRows(columns(from), from_column, columns(to), to_column, count);
}

void OwnColumns(const Run& run, const Tensor& all, const Tensor& local) {
  CopyColumns(all, run.mesh.tensor().rank() * local.dim(-1), local, 0, local.dim(-1));
}

ColumnGather::ColumnGather(Run& run, const Tensor& local, const Tensor& all) : all_(all) {
  const int ranks = run.mesh.tensor().size();
  if (ranks == 1) {
    Copy(local, all);
    return;
  }
  const int64_t width = local.dim(-1);
  gathered_ = run.arena.Allocate(local.dtype, {ranks, local.size() / width, width});
  event_ = run.mesh.tensor().AllGather(local, gathered_);
}

void ColumnGather::Wait() {
  event_.Wait();
  if (!gathered_.defined()) return;
  const int64_t ranks = gathered_.dim(0), width = gathered_.dim(2);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    CopyColumns(gathered_.Rows(rank, rank + 1), 0, all_, rank * width, width);
  }
}

void GatherColumns(Run& run, const Tensor& local, const Tensor& all) {
  ArenaScope scope(run.arena);
  ColumnGather(run, local, all).Wait();
}

Tensor AllColumns(Run& run, const Tensor& local) {
  const int64_t ranks = run.mesh.tensor().size();
  if (ranks == 1) return local;
  Shape shape = local.shape;
  shape.Set(shape.rank() - 1, ranks * local.dim(-1));
  const Tensor all = run.arena.Allocate(local.dtype, shape);
  GatherColumns(run, local, all);
  return all;
}

}  // namespace eyrie
