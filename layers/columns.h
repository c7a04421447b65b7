// Columns of activations whose width is cut over the tensor axis, where a rank needs those of all,
// or only its own of what it holds whole.
#pragma once

#include "layers/layer.h"

namespace eyrie {

// to [..., C], from column to_column on := columns [from_column, from_column + count) of from
// [..., D].
void CopyColumns(const Tensor& from, int64_t from_column, const Tensor& to, int64_t to_column,
                 int64_t count);
// local [..., C / ranks] := this rank's columns of all [..., C].
void OwnColumns(const Run& run, const Tensor& all, const Tensor& local);
// all [..., C] := every rank's columns, which travel until Wait.
class ColumnGather {
 public:
  // The buffer comes from the Run's arena and must outlive the gather, like `local`.
  ColumnGather(Run& run, const Tensor& local, const Tensor& all);
  void Wait();

 private:
  Tensor all_;
  Tensor gathered_;  // [ranks, rows, C / ranks]; absent with one rank
  Event event_;
};
// The same at once.
void GatherColumns(Run& run, const Tensor& local, const Tensor& all);
// Every rank's columns, in the arena; `local` itself where there is one rank.
Tensor AllColumns(Run& run, const Tensor& local);

}  // namespace eyrie
