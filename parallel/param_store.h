// This rank's parameters and their gradients, each in one flat buffer (parallel/bucket_plan.h), so
// that reductions, the optimiser and clipping work on long ranges.
//
// Gradients are summed over the replicas (data x sequence) bucket by bucket, while backward still
// computes others: it produces them last parameter first, and a bucket leaves as soon as all its
// parameters are complete. Without ZeRO that is an all-reduce. With it, a reduce-scatter leaves
// each replica the sum of the part it owns; the optimiser updates this part of the parameters, and
// the replicas gather the rest from one another. On the CPU values and gradients are float32 (in
// tests float64), and so are all these sums. On a GPU values may be bfloat16: then the optimiser
// updates float32 masters of the part that this rank owns, and values are their rounded copies;
// those of parameters of full precision are plain copies.
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
  // Of values other than those of full precision, and of the activations that layers compute.
  DType dtype() const { return precision_.values; }
  const Precision& precision() const { return precision_; }
  Device device() const { return values_.device(); }
  size_t value_bytes() const { return values_.bytes(); }
  size_t master_bytes() const { return masters_.bytes(); }
  size_t gradient_bytes() const { return grads_.bytes() + owned_grads_.bytes(); }
  // Values wait for a gathering under way, so that there are no stale ones to be seen.
  Tensor value(ParamId id) const;
  // The sum of what was added since ZeroGrads, to read or to add to.
  Tensor grad(ParamId id) const;
  // The same for whoever can also write: `started` tells to add to the sum, as in grad; or else
  // this contribution is the first, and has to be written over whatever is there. It must follow
  // at once.
  struct GradientSum {
    Tensor tensor;
    bool started = false;
  };
  GradientSum AddTo(ParamId id);
  const Slice& slice(ParamId id) const { return slices_[static_cast<size_t>(id)]; }
  int64_t offset(ParamId id) const { return plan_.offset(id); }
  // Elements of the flat buffers, padding included.
  int64_t elements() const { return plan_.elements(); }
  // Where all values have one type.
  Tensor flat_values() const;
  Tensor flat_grads() const;

  // Draws initial values, the same model in every layout.
  void Initialise(uint64_t seed);
  // The sums begin anew. Memory is only touched by the first contribution to each, or where there
  // is none by who reads it, so that large gradients need not be cleared to be added to.
  void ZeroGrads();

  // Call before the backward pass that completes the gradients, the last of the step, or several
  // that do so together, in turns: from now on GradsReady lets buckets go.
  void ReduceAsReady(int passes = 1) { passes_ = passes; }
  // This pass has completed its part of the gradients of parameter `first` and all after it; each
  // pass says so of the same parameters in the same order. With the last one to do so, starts what
  // can start, on every rank the same in the same order.
  void GradsReady(ParamId first);
  // Starts what has not started yet, and waits for all: the parts of the gradients that this rank
  // owns are now sums over the replicas.
  void ReduceGrads();

  // What this rank owns after ReduceGrads: without ZeRO, all.
  const std::vector<BucketPlan::Part>& owned() const { return owned_; }
  // The same with the padding between them, in as few stretches as there may be: one for each
  // bucket where Gather has to hand it on, and all that is of one type where there is nothing to.
  struct OwnedStretch {
    BucketPlan::Stretch place;
    int buckets = 0;  // so many end with it
  };
  const std::vector<OwnedStretch>& stretches() const { return stretches_; }
  // What the optimiser updates: the masters, or the values themselves where there are none.
  Tensor owned_master(const BucketPlan::Stretch& part) const;
  // The values to copy them to, rounded or not; absent where there are no masters.
  Tensor owned_copy(const BucketPlan::Stretch& part) const;
  Tensor owned_grad(const BucketPlan::Stretch& part) const;
  // Starts handing this rank's part of a bucket, just updated, to the other replicas, and taking
  // theirs. Once for each bucket, from 0 on; until then GatherDone, nothing else may write values.
  void Gather(int bucket);
  // Waits for all that is being gathered.
  void GatherDone() const { AwaitValues(plan_.elements()); }

  // All masters of this rank, laid out like its owned parts; absent where there are none.
  Tensor masters() const;
  // Values from masters that were just written, on all ranks.
  void PublishMasters();

  // The tensor of parameter `id` inside any flat buffer laid out like the values.
  Tensor At(const Buffer& flat, ParamId id) const;

 private:
  // Of the value at place `element` in the flat buffer; how many bytes lie before it.
  DType ValueType(int64_t element) const {
    return element < plan_.full_elements() ? FullPrecision(precision_.values) : precision_.values;
  }
  size_t ValueBytes(int64_t element) const;
  size_t GradientBytes(int64_t elements) const {
    return static_cast<size_t>(elements) * SizeOf(precision_.gradients);
  }
  Tensor ValuesAt(BucketPlan::Range range) const;
  // In either buffer of gradients.
  Tensor GradientsAt(const Buffer& flat, BucketPlan::Range range) const;
  Tensor GradientOf(ParamId id) const {
    return grads_.At(GradientBytes(offset(id)), precision_.gradients, slice(id).extent);
  }
  // Clears the gradients of `first` and all after it to which nothing was added.
  void ClearUnstarted(ParamId first) const;
  // The gradients of `first` and all after it are complete.
  void Release(ParamId first);
  void StartReducing(int bucket);
  // Waits for all buckets that start before `end` in the flat buffer.
  void AwaitValues(int64_t end) const;

  const ParamTable& table_;
  const Mesh& mesh_;
  Precision precision_;
  BucketPlan plan_;
  std::vector<Slice> slices_;
  std::vector<BucketPlan::Part> owned_;
  std::vector<OwnedStretch> stretches_;
  Buffer values_, grads_, masters_;
  Buffer owned_grads_;  // with ZeRO alone
  // Of each parameter: its gradient's memory holds the sum since ZeroGrads.
  mutable std::vector<bool> started_;

  int passes_ = 0;                            // 0: buckets wait for ReduceGrads
  std::vector<int> reports_;                  // of each parameter, by GradsReady
  ParamId ready_;                             // this parameter's gradient and all after it
  int reduced_;                               // this bucket and all after it have started
  std::vector<Event> partials_, reductions_;  // under way
  // Buckets being gathered, from 0 on; the first of them that have arrived.
  mutable std::vector<Event> gathering_;
  mutable size_t gathered_ = 0;
};

}  // namespace eyrie
