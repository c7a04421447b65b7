#include "parallel/param_store.h"

#include "core/threads.h"

namespace eyrie {
namespace {

constexpr int64_t kAlignElements = 16;  // a cache line of float32

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

ParamStore::ParamStore(const ParamTable& table, const Mesh& mesh, DType dtype, bool with_gradients)
    : table_(table), mesh_(mesh), dtype_(dtype) {
  for (const ParamSpec& spec : table.specs()) {
    const Slice slice = LocalSlice(spec, mesh.shape().tensor, mesh.tensor().rank());
    entries_.push_back({slice, elements_});
    elements_ += (slice.extent.size() + kAlignElements - 1) / kAlignElements * kAlignElements;
  }
  const size_t bytes = static_cast<size_t>(elements_) * SizeOf(dtype);
  values_ = Buffer(bytes);
  if (with_gradients) grads_ = Buffer(bytes);
}

Tensor ParamStore::At(const Buffer& flat, ParamId id) const {
  const Entry& entry = entries_[static_cast<size_t>(id)];
  return flat.At(static_cast<size_t>(entry.offset) * SizeOf(dtype_), dtype_, entry.slice.extent);
}

void ParamStore::Initialise(uint64_t seed) {
  for (ParamId id = 0; id < static_cast<ParamId>(entries_.size()); ++id) {
    if (dtype_ == DType::kF64) {
      Draw(table_.spec(id), slice(id), seed, value(id).data<double>());
    } else {
      Draw(table_.spec(id), slice(id), seed, value(id).data<float>());
    }
  }
}

void ParamStore::ZeroGrads() { FillZero(flat_grads()); }

void ParamStore::ReduceGrads() {
  std::vector<Event> events;
  for (ParamId id = 0; id < static_cast<ParamId>(entries_.size()); ++id) {
    if (table_.spec(id).partial_gradient) {
      events.push_back(mesh_.tensor().AllReduce(grad(id), ReduceOp::kSum));
    }
  }
  for (Event& event : events) event.Wait();
  mesh_.replicas().AllReduce(flat_grads(), ReduceOp::kSum).Wait();
}

}  // namespace eyrie
