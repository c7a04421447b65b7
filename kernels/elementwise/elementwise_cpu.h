// CPU bodies of the elementwise operations.
#pragma once

#include <algorithm>

#include "core/tensor.h"
#include "core/vector_math.h"
#include "kernels/partition.h"

namespace eyrie {

template <class Real>
void AddCpu(const Tensor& a, const Tensor& b, const Tensor& out) {
  const Real *left = a.data<Real>(), *right = b.data<Real>();
  Real* sum = out.data<Real>();
  ForElements(a.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) sum[i] = left[i] + right[i];
  });
}

template <class Real>
void BroadcastRowsCpu(const Tensor& bias, const Tensor& y) {
  const int64_t width = bias.size();
  const Real* from = bias.data<Real>();
  Real* to = y.data<Real>();
  RowTiles(y.size() / width, width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) std::copy_n(from, width, to + row * width);
  });
}

template <class Real>
void AddRowCpu(const Tensor& row, const Tensor& y) {
  const int64_t width = row.size();
  const Real* from = row.data<Real>();
  Real* to = y.data<Real>();
  RowTiles(y.size() / width, width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) to[r * width + c] += from[c];
    }
  });
}

template <class Real>
void SumRowsCpu(const Tensor& dy, const Tensor& dbias) {
  const int64_t width = dbias.size();
  AddRowSum(dy.data<Real>(), dy.size() / width, width, dbias.data<Real>());
}

}  // namespace eyrie
