#include "parallel/param_store.h"

#include "core/threads.h"

namespace eyrie {
namespace {

// Fills the local part of a parameter; element `i` of the flattened global tensor is the same
// whoever computes it.
template <class T>
void Draw(const ParamSpec& spec, const Slice& slice, uint64_t seed, T* values) {
  const Random random(seed, spec.name);
  const int rank = spec.shape.rank();
  const int64_t inner = rank == 0 ? 1 : slice.extent[rank - 1];
  const int64_t rows = inner == 0 ? 0 : slice.extent.size() / inner;
  ParallelFor(rows, [&](int64_t row) {
    // The global index of the row's first element.
    int64_t index = 0, stride = 1, rest = row;
    if (rank > 0) {
      index = slice.offset[rank - 1];
      stride = spec.shape[rank - 1];
    }
    for (int axis = rank - 2; axis >= 0; --axis) {
      index += (rest % slice.extent[axis] + slice.offset[axis]) * stride;
      rest /= slice.extent[axis];
      stride *= spec.shape[axis];
    }
    for (int64_t column = 0; column < inner; ++column) {
      values[row * inner + column] =
          static_cast<T>(spec.init(random, static_cast<uint64_t>(index + column)));
    }
  });
}

}  // namespace

ParamStore::ParamStore(const ParamTable& table, const Mesh& mesh, Precision precision,
                       bool with_gradients, const BucketOptions& options, Device device)
    : table_(table),
      mesh_(mesh),
      precision_(precision),
      plan_(table, mesh.shape(), options),
      owned_(plan_.Parts(plan_.sharded() ? mesh.replicas().rank() : 0)),
      values_(Bytes(plan_.elements()), device),
      ready_(static_cast<ParamId>(table.specs().size())),
      reduced_(plan_.buckets()) {
  for (const ParamSpec& spec : table.specs()) {
    slices_.push_back(LocalSlice(spec, mesh.shape().tensor, mesh.tensor().rank()));
  }
  if (!with_gradients) return;
  grads_ = Buffer(GradientBytes(plan_.elements()), device);
  // MPI's reduce-scatter cannot leave a part where it was.
  if (plan_.sharded()) {
    owned_grads_ = Buffer(GradientBytes(plan_.owned_elements()), device);
  }
}

Tensor ParamStore::At(const Buffer& flat, ParamId id) const {
  return flat.At(Bytes(offset(id)), dtype(), slice(id).extent);
}

Tensor ParamStore::ValuesAt(BucketPlan::Range range) const {
  return values_.At(Bytes(range.begin), precision_.values, {range.size()});
}

Tensor ParamStore::GradientsAt(const Buffer& flat, BucketPlan::Range range) const {
  return flat.At(GradientBytes(range.begin), precision_.gradients, {range.size()});
}

Tensor ParamStore::value(ParamId id) const {
  AwaitValues(offset(id) + slice(id).extent.size());
  return At(values_, id);
}

Tensor ParamStore::flat_values() const {
  GatherDone();
  return values_.At(0, dtype(), {elements()});
}

Tensor ParamStore::owned_value(const BucketPlan::Part& part) const {
  return ValuesAt({part.flat, part.flat + part.range.size()});
}

Tensor ParamStore::owned_grad(const BucketPlan::Part& part) const {
  return GradientsAt(plan_.sharded() ? owned_grads_ : grads_,
                     {part.owned, part.owned + part.range.size()});
}

void ParamStore::Initialise(uint64_t seed) {
  for (ParamId id = 0; id < static_cast<ParamId>(slices_.size()); ++id) {
    if (dtype() == DType::kF64) {
      Draw(table_.spec(id), slice(id), seed, value(id).data<double>());
    } else {
      Draw(table_.spec(id), slice(id), seed, value(id).data<float>());
    }
  }
}

void ParamStore::ZeroGrads() { FillZero(flat_grads()); }

void ParamStore::GradsReady(ParamId first) {
  if (!reducing_) return;
  for (; ready_ > first; --ready_) {
    if (!table_.spec(ready_ - 1).partial_gradient) continue;
    partials_.push_back(mesh_.tensor().AllReduce(grad(ready_ - 1), ReduceOp::kSum));
  }
  for (const int begin = plan_.FirstBucketFrom(first); reduced_ > begin;) StartReducing(--reduced_);
  for (Event& event : reductions_) event.Progress();
}

void ParamStore::StartReducing(int bucket) {
  for (Event& event : partials_) event.Wait();
  partials_.clear();
  const BucketPlan::Range range = plan_.bucket(bucket);
  const Tensor whole = GradientsAt(grads_, range);
  if (!plan_.sharded()) {
    reductions_.push_back(mesh_.replicas().AllReduce(whole, ReduceOp::kSum));
    return;
  }
  const int64_t begin = plan_.owned_offset(bucket);
  const Tensor mine = GradientsAt(owned_grads_, {begin, begin + range.size() / plan_.owners()});
  reductions_.push_back(mesh_.replicas().ReduceScatter(whole, mine));
}

void ParamStore::ReduceGrads() {
  reducing_ = true;
  GradsReady(0);
  for (Event& event : reductions_) event.Wait();
  reductions_.clear();
  reducing_ = false;
  ready_ = static_cast<ParamId>(slices_.size());
  reduced_ = plan_.buckets();
}

void ParamStore::Gather(int bucket) {
  if (!plan_.sharded()) return;
  if (bucket == 0) {
    EYRIE_CHECK(gathered_ == gathering_.size());
    gathering_.clear();
    gathered_ = 0;
  }
  EYRIE_CHECK(static_cast<size_t>(bucket) == gathering_.size());
  Communicator& replicas = mesh_.replicas();
  gathering_.push_back(replicas.AllGather(ValuesAt(plan_.share(bucket, replicas.rank())),
                                          ValuesAt(plan_.bucket(bucket))));
}

void ParamStore::AwaitValues(int64_t end) const {
  while (gathered_ < gathering_.size() && plan_.bucket(static_cast<int>(gathered_)).begin < end) {
    gathering_[gathered_++].Wait();
  }
}

}  // namespace eyrie
