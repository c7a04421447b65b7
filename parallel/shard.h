// Which part of a global tensor a rank holds, and copying between parts: the one place that
// initialisation, checkpoints and resharding learn it from.
#pragma once

#include <optional>

#include "core/param_table.h"

namespace eyrie {

// A box inside a global tensor.
struct Slice {
  Shape offset;
  Shape extent;
};

// The slice of a parameter on rank `tensor_rank` of `tensor_size`.
Slice LocalSlice(const ParamSpec& spec, int tensor_size, int tensor_rank);

// What two boxes have in common, or nothing.
std::optional<Slice> Intersect(const Slice& a, const Slice& b);

// Copies `part`, given in global coordinates, from the memory of box `from` to that of box `to`.
// Both are contiguous and contain `part`.
void CopyPart(const Slice& part, const Slice& from, const void* source, const Slice& to,
              void* target, size_t element_bytes);

}  // namespace eyrie
