// Products of few rows on a GPU, which take as long as reading B takes: those of decoding.
#pragma once

#include <span>

#include "core/blas.h"

namespace eyrie {

// C = A B^T + bias + added or C += A B^T of bfloat16 A and B: at most kMostFewRowsProducts
// products, none of more than kMostFewRows rows, with m, k and C's type in common, and A and B in
// 16-byte vectors.
inline constexpr int64_t kMostFewRows = 16;
inline constexpr int kMostFewRowsProducts = 4;

// Whether FewRowsCuda takes these products, which are at least one, all of them together.
bool IsFewRows(std::span<const GemmArgs> products);
void FewRowsCuda(std::span<const GemmArgs> products);

}  // namespace eyrie
