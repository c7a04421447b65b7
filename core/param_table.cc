#include "core/param_table.h"

#include <utility>

namespace eyrie {

InitFn InitConstant(double value) {
  return [value](const Random&, uint64_t) { return value; };
}

InitFn InitNormal(double standard_deviation) {
  return [standard_deviation](const Random& random, uint64_t index) {
    return standard_deviation * random.Normal(index);
  };
}

InitFn InitUniform(double bound) {
  return [bound](const Random& random, uint64_t index) {
    return bound * (2 * random.Uniform(index) - 1);
  };
}

ParamId ParamTable::Add(ParamSpec spec) {
  EYRIE_CHECK(spec.init != nullptr, spec.name, " has no initialisation");
  EYRIE_CHECK(names_.insert(spec.name).second, "parameter declared twice: ", spec.name);
  specs_.push_back(std::move(spec));
  return static_cast<ParamId>(specs_.size()) - 1;
}

int64_t ParamTable::TotalElements() const {
  int64_t total = 0;
  for (const ParamSpec& spec : specs_) total += spec.shape.size();
  return total;
}

}  // namespace eyrie
