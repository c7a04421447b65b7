// Products of few rows on a GPU, which take as long as reading B takes: those of decoding.
#pragma once

#include <span>

#include "core/blas.h"

namespace eyrie {

// C = A B^T + bias or C += A B^T in bfloat16, for several products of at most kMostRows rows that
// have m, n's types, k and A's row stride alike.
inline constexpr int64_t kMostFewRows = 16;
inline constexpr int kMostFewRowsProducts = 4;

// Whether FewRowsCuda takes these products, all of them together.
bool IsFewRows(std::span<const GemmArgs> products);
void FewRowsCuda(std::span<const GemmArgs> products);

}  // namespace eyrie
