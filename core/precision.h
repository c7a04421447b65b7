// The element types of what a training run holds, in one place for those that hold it and those
// that plan for it.
#pragma once

#include "core/dtype.h"

namespace eyrie {

struct Precision {
  // Everything in one type.
  constexpr Precision(DType all)  // NOLINT(google-explicit-constructor)
      : values(all), activations(all), gradients(all), masters(all), moments(all) {}
  // Mixed-precision training, Micikevicius et al., arXiv:1710.03740, with bfloat16: products run on
  // bfloat16, sums over microbatches and replicas and the optimiser's state are float32.
  static constexpr Precision Mixed() {
    Precision mixed(DType::kF32);
    mixed.values = mixed.activations = DType::kBF16;
    return mixed;
  }
  // Whether the optimiser updates a copy of the parameters, the masters, and not the values.
  constexpr bool has_masters() const { return masters != values; }

  // The parameters that kernels read, on every rank; those declared so (ParamSpec::full_precision)
  // have FullPrecision(values).
  DType values;
  DType activations;  // what layers compute and save
  DType gradients;    // of the parameters: what is added to and reduced
  DType masters, moments;
};

}  // namespace eyrie
