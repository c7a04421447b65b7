// Which part of a global tensor a rank holds, and copying between parts: the one place that
// initialisation, checkpoints and resharding learn it from.
#pragma once

#include <optional>
#include <vector>

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

// Elements [begin, end) of the flattened box, as boxes in global coordinates: as few as start at
// `begin` and follow one another in memory, at most 2 rank - 1.
std::vector<Slice> BoxesOf(const Slice& box, int64_t begin, int64_t end);

// Copies `part`, given in global coordinates, from the memory of box `from` to that of box `to`.
// Both are contiguous and contain `part`.
void CopyPart(const Slice& part, const Slice& from, const void* source, const Slice& to,
              void* target, size_t element_bytes);

}  // namespace eyrie
