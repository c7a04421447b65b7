// Vectorised reductions over one contiguous row, in an order that depends on its length alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/threads.h"

namespace eyrie {

// The largest of x[0, n); -infinity when n = 0. A NaN may go unnoticed: the exponentials that
// follow a maximum carry it on.
template <class T>
T MaxOf(const T* x, int64_t n) {
  T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// Sum over pieces of `kSumPiece` elements, each added up by `piece(begin, end)` in its own
// precision, in float64: long float32 rows keep their accuracy at no cost.
inline constexpr int64_t kSumPiece = 4096;
template <class Piece>
double SumPieces(int64_t n, const Piece& piece) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSumPiece) {
    sum += static_cast<double>(piece(begin, std::min(n, begin + kSumPiece)));
  }
  return sum;
}

}  // namespace eyrie
