// Vectorised loops over one contiguous row, summed in an order that depends on its length alone.
// They are functions of their own rather than loops inside the closures that spread rows over
// threads: there GCC reads captured variables through the closure in every lane, by gathers.
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

template <class T>
T DotOf(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// y = factor x; y may be x.
template <class T>
void ScaleRow(T factor, const T* x, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = factor * x[i];
}

// y += factor x.
template <class T>
void AddScaledRow(T factor, const T* x, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// Sum of exp(x - shift).
template <class T>
T SumOfExp(const T* x, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += Exp(x[i] - shift);
  return sum;
}

// x = exp(x - shift); returns the sum.
template <class T>
T ExpInPlace(T* x, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = Exp(x[i] - shift);
    sum += x[i];
  }
  return sum;
}

// Adds up sum(begin, count) over pieces of a long row in float64: a float32 row as long as a
// vocabulary keeps its accuracy at no cost.
template <class Sum>
double SumByPieces(int64_t n, const Sum& sum) {
  constexpr int64_t kPiece = 4096;
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    total += static_cast<double>(sum(begin, std::min(kPiece, n - begin)));
  }
  return total;
}

}  // namespace eyrie
