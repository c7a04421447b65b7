// What the LayerNorms, plain and gated, have in common: rows of G groups of D channels, each with a
// mean and a deviation of its own.
#pragma once

#include "kernels/dispatch.h"

namespace eyrie {

// rstd = 1 / sqrt(variance + epsilon), the variance being biased.
template <class Real>
struct GroupStatistics {
  Real mean, rstd;
};

// Checks x [..., G, D], its weight [G, D], and mean and rstd: N G elements in any shape.
inline void CheckGroups(const char* kernel, const Tensor& x, const Tensor& weight,
                        const Tensor& mean, const Tensor& rstd) {
  EYRIE_CHECK(x.defined() && x.shape.rank() >= 2 && x.dim(-1) > 0 && x.dim(-2) > 0, kernel,
              ": x has shape ", x.shape.ToString());
  CheckShape(kernel, "weight", weight, {x.dim(-2), x.dim(-1)});
  for (const Tensor& statistic : {mean, rstd}) {
    EYRIE_CHECK(statistic.defined() && statistic.size() == x.size() / x.dim(-1), kernel,
                ": mean or rstd has shape ", statistic.shape.ToString());
  }
  CheckTypes(kernel, x, x.dtype, {weight});
  CheckTypes(kernel, x, FullPrecision(x.dtype), {mean, rstd});
}

}  // namespace eyrie
