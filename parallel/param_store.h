// This rank's parameters and their gradients, each in one flat buffer laid out in table order, so
// that reductions, the optimiser and clipping work on long ranges.
#pragma once

#include <vector>

#include "core/memory.h"
#include "core/param_table.h"
#include "parallel/mesh.h"
#include "parallel/shard.h"

namespace eyrie {

class ParamStore {
 public:
  // Gradients are only allocated for training.
  ParamStore(const ParamTable& table, const Mesh& mesh, DType dtype, bool with_gradients);

  const ParamTable& table() const { return table_; }
  DType dtype() const { return dtype_; }
  Tensor value(ParamId id) const { return At(values_, id); }
  Tensor grad(ParamId id) const { return At(grads_, id); }
  const Slice& slice(ParamId id) const { return entries_[static_cast<size_t>(id)].slice; }
  int64_t offset(ParamId id) const { return entries_[static_cast<size_t>(id)].offset; }
  // Elements of the flat buffers, padding included.
  int64_t elements() const { return elements_; }
  Tensor flat_values() const { return values_.At(0, dtype_, {elements_}); }
  Tensor flat_grads() const { return grads_.At(0, dtype_, {elements_}); }

  // Draws initial values, the same model in every layout.
  void Initialise(uint64_t seed);
  void ZeroGrads();
  // After the last microbatch: completes partial gradients over the tensor axis, then sums over
  // the replicas (data x sequence).
  void ReduceGrads();

  // The tensor of parameter `id` inside any flat buffer laid out like this store.
  Tensor At(const Buffer& flat, ParamId id) const;

 private:
  struct Entry {
    Slice slice;
    int64_t offset = 0;  // elements
  };

  const ParamTable& table_;
  const Mesh& mesh_;
  DType dtype_;
  std::vector<Entry> entries_;
  int64_t elements_ = 0;
  Buffer values_, grads_;
};

}  // namespace eyrie
