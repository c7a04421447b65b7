// What a model's parameters are, before any memory is taken: names, global shapes, how the tensor
// axis of the mesh shards them, how they start, whether they decay. Initialisation, checkpoints,
// resharding, gradient reduction and the optimiser are written against this table alone.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"

namespace eyrie {

// The initial value of the element at `index` of the flattened global tensor.
using InitFn = std::function<double(const Random& random, uint64_t index)>;
InitFn InitConstant(double value);
InitFn InitNormal(double standard_deviation);
InitFn InitUniform(double bound);  // in (-bound, bound)

struct ParamSpec {
  std::string name;     // global, dotted, e.g. "blocks.3.rec.in_x.w"
  Shape shape;          // global
  int shard_axis = -1;  // the axis cut into equal parts over tensor ranks; -1: replicated
  // A replicated parameter that tensor ranks use on different data (multi-query K and V): each
  // holds a part of its gradient, and the parts are summed over the tensor axis.
  bool partial_gradient = false;
  bool weight_decay = false;
  // Kernels read its values in full precision (FullPrecision in core/dtype.h) even where those of
  // other parameters are rounded: rates of decay and what else is exponentiated over many tokens.
  bool full_precision = false;
  InitFn init;
};

// An index into the table, held by the layer that declared the parameter.
using ParamId = int;

class ParamTable {
 public:
  // The name must be new.
  ParamId Add(ParamSpec spec);
  const std::vector<ParamSpec>& specs() const { return specs_; }
  const ParamSpec& spec(ParamId id) const { return specs_[static_cast<size_t>(id)]; }
  // Elements of all parameters, globally.
  int64_t TotalElements() const;

 private:
  std::vector<ParamSpec> specs_;
  std::unordered_set<std::string> names_;
};

}  // namespace eyrie
