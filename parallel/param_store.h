// This rank's parameters and their gradients, each in one flat buffer laid out in table order, so
// that reductions, the optimiser and clipping work on long ranges.
//
// Gradients are summed over the replicas (data x sequence) bucket by bucket, while backward still
// computes others: it produces them last parameter first, and a bucket leaves as soon as all its
// parameters are complete. Without ZeRO that is an all-reduce. With it, a reduce-scatter leaves
// each replica the sum of the part it owns; the optimiser updates this part of the parameters, and
// the replicas gather the rest from one another. On the CPU values and gradients are float32 (in
// tests float64), and so are all these sums.
#pragma once

#include <vector>

#include "core/memory.h"
#include "core/param_table.h"
#include "core/precision.h"
#include "parallel/bucket_plan.h"
#include "parallel/mesh.h"
#include "parallel/shard.h"

namespace eyrie {

class ParamStore {
 public:
  // Gradients are only allocated for training.
  ParamStore(const ParamTable& table, const Mesh& mesh, Precision precision, bool with_gradients,
             const BucketOptions& options = {}, Device device = Device::kCpu);

  const ParamTable& table() const { return table_; }
  const BucketPlan& plan() const { return plan_; }
  // Of values, and of the activations that layers compute from them.
  DType dtype() const { return precision_.values; }
  const Precision& precision() const { return precision_; }
  Device device() const { return values_.device(); }
  size_t value_bytes() const { return values_.bytes(); }
  size_t gradient_bytes() const { return grads_.bytes() + owned_grads_.bytes(); }
  // Values wait for a gathering under way, so that there are no stale ones to be seen.
  Tensor value(ParamId id) const;
  Tensor grad(ParamId id) const {
    return grads_.At(GradientBytes(offset(id)), precision_.gradients, slice(id).extent);
  }
  const Slice& slice(ParamId id) const { return slices_[static_cast<size_t>(id)]; }
  int64_t offset(ParamId id) const { return plan_.offset(id); }
  // Elements of the flat buffers, padding included.
  int64_t elements() const { return plan_.elements(); }
  Tensor flat_values() const;
  Tensor flat_grads() const { return grads_.At(0, precision_.gradients, {elements()}); }

  // Draws initial values, the same model in every layout.
  void Initialise(uint64_t seed);
  void ZeroGrads();

  // Call before the backward pass that completes the gradients, the last of the step: from now on
  // GradsReady lets buckets go.
  void ReduceAsReady() { reducing_ = true; }
  // The gradients of parameter `first` and all after it are complete. Starts what can start, on
  // every rank the same in the same order.
  void GradsReady(ParamId first);
  // Starts what has not started yet, and waits for all: the parts of the gradients that this rank
  // owns are now sums over the replicas.
  void ReduceGrads();

  // What this rank owns after ReduceGrads: without ZeRO, all.
  const std::vector<BucketPlan::Part>& owned() const { return owned_; }
  Tensor owned_value(const BucketPlan::Part& part) const;
  Tensor owned_grad(const BucketPlan::Part& part) const;
  // Starts handing this rank's part of a bucket, just updated, to the other replicas, and taking
  // theirs. Once for each bucket, from 0 on; until then GatherDone, nothing else may write values.
  void Gather(int bucket);
  // Waits for all that is being gathered.
  void GatherDone() const { AwaitValues(plan_.elements()); }

  // The tensor of parameter `id` inside any flat buffer laid out like this store.
  Tensor At(const Buffer& flat, ParamId id) const;

 private:
  size_t Bytes(int64_t elements) const {
    return static_cast<size_t>(elements) * SizeOf(precision_.values);
  }
  size_t GradientBytes(int64_t elements) const {
    return static_cast<size_t>(elements) * SizeOf(precision_.gradients);
  }
  Tensor ValuesAt(BucketPlan::Range range) const;
  // In either buffer of gradients.
  Tensor GradientsAt(const Buffer& flat, BucketPlan::Range range) const;
  void StartReducing(int bucket);
  // Waits for all buckets that start before `end` in the flat buffer.
  void AwaitValues(int64_t end) const;

  const ParamTable& table_;
  const Mesh& mesh_;
  Precision precision_;
  BucketPlan plan_;
  std::vector<Slice> slices_;
  std::vector<BucketPlan::Part> owned_;
  Buffer values_, grads_, owned_grads_;  // the last one with ZeRO alone

  bool reducing_ = false;
  ParamId ready_;                             // this parameter's gradient and all after it
  int reduced_;                               // this bucket and all after it have started
  std::vector<Event> partials_, reductions_;  // under way
  // Buckets being gathered, from 0 on; the first of them that have arrived.
  mutable std::vector<Event> gathering_;
  mutable size_t gathered_ = 0;
};

}  // namespace eyrie
