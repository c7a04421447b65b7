#include "parallel/shard.h"

#include <algorithm>
#include <cstring>

namespace eyrie {

Slice LocalSlice(const ParamSpec& spec, int tensor_size, int tensor_rank) {
  Slice slice{spec.shape, spec.shape};
  for (int axis = 0; axis < spec.shape.rank(); ++axis) slice.offset.Set(axis, 0);
  if (spec.shard_axis >= 0) {
    const int64_t extent = spec.shape[spec.shard_axis];
    EYRIE_CHECK(extent % tensor_size == 0, spec.name, " ", spec.shape.ToString(), " on ",
                tensor_size, " tensor ranks");
    slice.extent.Set(spec.shard_axis, extent / tensor_size);
    slice.offset.Set(spec.shard_axis, extent / tensor_size * tensor_rank);
  }
  return slice;
}

std::optional<Slice> Intersect(const Slice& a, const Slice& b) {
  EYRIE_CHECK(a.extent.rank() == b.extent.rank());
  Slice common = a;
  for (int axis = 0; axis < a.extent.rank(); ++axis) {
    const int64_t begin = std::max(a.offset[axis], b.offset[axis]);
    const int64_t end = std::min(a.offset[axis] + a.extent[axis], b.offset[axis] + b.extent[axis]);
    if (begin >= end) return std::nullopt;
    common.offset.Set(axis, begin);
    common.extent.Set(axis, end - begin);
  }
  return common;
}

std::vector<Slice> BoxesOf(const Slice& box, int64_t begin, int64_t end) {
  const int rank = box.extent.rank();
  EYRIE_CHECK(begin >= 0 && begin <= end && end <= box.extent.size());
  std::vector<Slice> boxes;
  while (begin < end) {
    // The largest box from here on: whole rows along the outermost axis at whose row it starts.
    int64_t stride = 1;  // elements of a row along `axis`
    int axis = rank;
    while (axis > 0 && begin % (stride * box.extent[axis - 1]) == 0 &&
           begin + stride * box.extent[axis - 1] <= end) {
      stride *= box.extent[--axis];
    }
    Slice part = box;
    int64_t rest = begin / stride;
    for (int outer = axis - 1; outer >= 0; --outer) {
      const int64_t at = rest % box.extent[outer];
      rest /= box.extent[outer];
      part.offset.Set(outer, box.offset[outer] + at);
      part.extent.Set(
          outer, outer < axis - 1 ? 1 : std::min((end - begin) / stride, box.extent[outer] - at));
    }
    begin += part.extent.size();
    boxes.push_back(part);
  }
  return boxes;
}

void CopyPart(const Slice& part, const Slice& from, const void* source, const Slice& to,
              void* target, size_t element_bytes) {
  // Rows along the innermost axis are contiguous in both; the outer axes are walked one by one.
  const int rank = part.extent.rank();
  const auto offset_in = [&](const Slice& box, const Shape& at) {
    int64_t offset = 0;
    for (int axis = 0; axis < rank; ++axis) {
      offset = offset * box.extent[axis] + at[axis] - box.offset[axis];
    }
    return static_cast<size_t>(offset) * element_bytes;
  };
  const size_t row_bytes =
      static_cast<size_t>(rank == 0 ? 1 : part.extent[rank - 1]) * element_bytes;
  Shape at = part.offset;
  while (true) {
    std::memcpy(static_cast<char*>(target) + offset_in(to, at),
                static_cast<const char*>(source) + offset_in(from, at), row_bytes);
    int axis = rank - 2;
    for (; axis >= 0; --axis) {
      at.Set(axis, at[axis] + 1);
      if (at[axis] < part.offset[axis] + part.extent[axis]) break;
      at.Set(axis, part.offset[axis]);
    }
    if (axis < 0) return;
  }
}

}  // namespace eyrie
