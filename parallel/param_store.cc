#include "parallel/param_store.h"

#include <algorithm>

#include "core/tensor_math.h"
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
      plan_(table, mesh.shape(), options, precision.has_masters()),
      owned_(plan_.Parts(plan_.sharded() ? mesh.replicas().rank() : 0)),
      values_(ValueBytes(plan_.elements()), device),
      started_(table.specs().size(), true),
      reports_(table.specs().size()),
      ready_(static_cast<ParamId>(table.specs().size())),
      reduced_(plan_.buckets()) {
  for (const ParamSpec& spec : table.specs()) {
    slices_.push_back(LocalSlice(spec, mesh.shape().tensor, mesh.tensor().rank()));
  }
  for (int bucket = 0; bucket < plan_.buckets(); ++bucket) {
    const auto share = plan_.share(bucket, plan_.sharded() ? mesh.replicas().rank() : 0);
    if (plan_.sharded() || share.begin == 0 || share.begin == plan_.full_elements()) {
      stretches_.push_back({{share.begin, plan_.owned_offset(bucket), 0}});
    }
    stretches_.back().place.size += share.size();
    ++stretches_.back().buckets;
  }
  if (!with_gradients) return;
  grads_ = Buffer(GradientBytes(plan_.elements()), device);
  if (precision.has_masters()) {
    masters_ =
        Buffer(static_cast<size_t>(plan_.owned_elements()) * SizeOf(precision.masters), device);
  }
  // MPI's reduce-scatter cannot leave a part where it was.
  if (plan_.sharded()) {
    owned_grads_ = Buffer(GradientBytes(plan_.owned_elements()), device);
  }
}

Tensor ParamStore::At(const Buffer& flat, ParamId id) const {
  return flat.At(ValueBytes(offset(id)), ValueType(offset(id)), slice(id).extent);
}

size_t ParamStore::ValueBytes(int64_t element) const {
  const int64_t full = std::min(element, plan_.full_elements());
  return static_cast<size_t>(full) * SizeOf(FullPrecision(precision_.values)) +
         static_cast<size_t>(element - full) * SizeOf(precision_.values);
}

Tensor ParamStore::ValuesAt(BucketPlan::Range range) const {
  return values_.At(ValueBytes(range.begin), ValueType(range.begin), {range.size()});
}

Tensor ParamStore::GradientsAt(const Buffer& flat, BucketPlan::Range range) const {
  return flat.At(GradientBytes(range.begin), precision_.gradients, {range.size()});
}

Tensor ParamStore::value(ParamId id) const {
  AwaitValues(offset(id) + slice(id).extent.size());
  return At(values_, id);
}

Tensor ParamStore::flat_values() const {
  EYRIE_CHECK(plan_.full_elements() == 0, "values of two types");
  GatherDone();
  return ValuesAt({0, elements()});
}

Tensor ParamStore::owned_master(const BucketPlan::Stretch& part) const {
  if (!precision_.has_masters()) return ValuesAt({part.flat, part.flat + part.size});
  return masters_.At(static_cast<size_t>(part.owned) * SizeOf(precision_.masters),
                     precision_.masters, {part.size});
}

Tensor ParamStore::owned_copy(const BucketPlan::Stretch& part) const {
  if (!precision_.has_masters()) return {};
  return ValuesAt({part.flat, part.flat + part.size});
}

Tensor ParamStore::masters() const {
  if (masters_.bytes() == 0) return {};
  return masters_.At(0, precision_.masters, {plan_.owned_elements()});
}

void ParamStore::PublishMasters() {
  GatherDone();
  for (const BucketPlan::Part& part : owned_) Convert(owned_master(part), owned_copy(part));
  for (int bucket = 0; bucket < plan_.buckets(); ++bucket) Gather(bucket);
}

Tensor ParamStore::owned_grad(const BucketPlan::Stretch& part) const {
  return GradientsAt(plan_.sharded() ? owned_grads_ : grads_, {part.owned, part.owned + part.size});
}

void ParamStore::Initialise(uint64_t seed) {
  auto owned = owned_.begin();
  for (const ParamId id : plan_.order()) {
    const Tensor to = value(id);
    // Drawn on the host, in full precision.
    const OwnedTensor drawn(FullPrecision(to.dtype), to.shape);
    if (to.dtype == DType::kF64) {
      Draw(table_.spec(id), slice(id), seed, drawn.tensor.data<double>());
    } else {
      Draw(table_.spec(id), slice(id), seed, drawn.tensor.data<float>());
    }
    if (masters_.bytes() > 0) {
      const Tensor flat = drawn.tensor.View({drawn.tensor.size()});
      for (; owned != owned_.end() && owned->param == id; ++owned) {
        Copy(flat.Rows(owned->range.begin, owned->range.end), owned_master(*owned));
      }
    }
    if (to.dtype == drawn.tensor.dtype) {
      Copy(drawn.tensor, to);
    } else {
      const OwnedTensor rounded(to.dtype, to.shape);
      Convert(drawn.tensor, rounded.tensor);
      Copy(rounded.tensor, to);
    }
  }
}

void ParamStore::ZeroGrads() { started_.assign(started_.size(), false); }

ParamStore::GradientSum ParamStore::AddTo(ParamId id) {
  const auto index = static_cast<size_t>(id);
  const bool started = started_[index];
  started_[index] = true;
  return {GradientOf(id), started};
}

Tensor ParamStore::grad(ParamId id) const {
  const auto index = static_cast<size_t>(id);
  const Tensor gradient = GradientOf(id);
  if (!started_[index]) FillZero(gradient);
  started_[index] = true;
  return gradient;
}

Tensor ParamStore::flat_grads() const {
  ClearUnstarted(0);
  return grads_.At(0, precision_.gradients, {elements()});
}

void ParamStore::ClearUnstarted(ParamId first) const {
  for (auto id = first; id < static_cast<ParamId>(started_.size()); ++id) grad(id);
}

void ParamStore::GradsReady(ParamId first) {
  if (passes_ == 0) return;
  if (++reports_[static_cast<size_t>(first)] == passes_) Release(first);
  for (Event& event : reductions_) event.Progress();
}

void ParamStore::Release(ParamId first) {
  ClearUnstarted(first);
  for (; ready_ > first; --ready_) {
    if (!table_.spec(ready_ - 1).partial_gradient) continue;
    partials_.push_back(mesh_.tensor().AllReduce(grad(ready_ - 1), ReduceOp::kSum));
  }
  for (const int begin = plan_.FirstBucketFrom(first); reduced_ > begin;) StartReducing(--reduced_);
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
  Release(0);
  for (Event& event : reductions_) event.Wait();
  reductions_.clear();
  passes_ = 0;
  std::fill(reports_.begin(), reports_.end(), 0);
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
