#include "launcher/non_finite.h"

#include <cmath>

namespace eyrie {
namespace {

bool Finite(double value) { return std::isfinite(value); }
bool Finite(BFloat16 value) { return std::isfinite(static_cast<float>(value)); }

template <class T>
bool AllFinite(const Tensor& tensor) {
  const T* values = tensor.data<T>();
  for (int64_t i = 0; i < tensor.size(); ++i) {
    if (!Finite(values[i])) return false;
  }
  return true;
}

bool IsFinite(const Tensor& tensor) {
  if (tensor.device != Device::kCpu) {
    const OwnedTensor host(tensor.dtype, tensor.shape);
    Copy(tensor, host.tensor);
    return IsFinite(host.tensor);
  }
  switch (tensor.dtype) {
    case DType::kF32: return AllFinite<float>(tensor);
    case DType::kF64: return AllFinite<double>(tensor);
    case DType::kBF16: return AllFinite<BFloat16>(tensor);
    default: ThrowFailure("no search for NaN in ", Name(tensor.dtype));
  }
}

}  // namespace

NonFiniteSearch::NonFiniteSearch(Run& run) : run_(run) {
  run.observe = [this](Seen seen, const std::string& layer, const Tensor& tensor) {
    Look(StrCat(seen == Seen::kOutput ? "the output of " : "the gradient from ", layer), tensor);
  };
}

NonFiniteSearch::~NonFiniteSearch() { run_.observe = nullptr; }

void NonFiniteSearch::Begin(int64_t first, int64_t count) {
  first_ = first;
  count_ = count;
}

void NonFiniteSearch::End() {
  const auto& specs = run_.params.table().specs();
  for (ParamId id = 0; id < static_cast<ParamId>(specs.size()); ++id) {
    Look("the gradient of " + specs[static_cast<size_t>(id)].name, run_.params.grad(id));
  }
}

void NonFiniteSearch::Look(const std::string& what, const Tensor& tensor) {
  ++looks_;
  if (found_at_ || IsFinite(tensor)) return;
  found_at_ = looks_;
  found_ = StrCat(what, ", in samples ", first_, " to ", first_ + count_ - 1, ", on data rank ",
                  run_.mesh.data().rank());
}

std::string NonFiniteSearch::Report() const {
  Communicator& world = run_.mesh.world();
  const auto largest = [&](double value) { return AllReduceValue(world, value, ReduceOp::kMax); };
  // The fewest looks, and among ranks that are level the lowest.
  const double never = -1e18;
  const double earliest = largest(found_at_ ? -static_cast<double>(*found_at_) : never);
  const bool level = found_at_ && -static_cast<double>(*found_at_) == earliest;
  const double speaker = largest(level ? -world.rank() : never);
  if (speaker == never) {
    return run_.mesh.is_root() ? "nothing, when the step was run once more" : "";
  }
  return speaker == -world.rank() ? found_ : "";
}

}  // namespace eyrie
