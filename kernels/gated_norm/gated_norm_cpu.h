// CPU body of the gated norm. A task takes a tile of rows.
#pragma once

#include <cmath>

#include "kernels/gated_norm/gated_norm.h"
#include "kernels/partition.h"

namespace eyrie {

template <class Real>
void RowProductsCpu(const RowProductsArgs& args) {
  const int64_t columns = args.a.dim(-1);
  const Real *a = args.a.data<Real>(), *b = args.b.data<Real>(), *c = args.c.data<Real>();
  Real* sums = args.sums.data<Real>();
  RowTiles(args.sums.size(), columns).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Real *a_row = a + row * columns, *b_row = b + row * columns;
      Real sum = 0;
      if (c == nullptr) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; ++i) sum += a_row[i] * b_row[i];
      } else {
        const Real* c_row = c + row * columns;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < columns; ++i) sum += a_row[i] * b_row[i] * c_row[i];
      }
      sums[row] = sum;
    }
  });
}

template <class Real>
void GatedNormForwardCpu(const GatedNormForwardArgs& args) {
  const int64_t columns = args.x.dim(-1);
  const Real *x = args.x.data<Real>(), *gate = args.gate.data<Real>();
  const Real* squares = args.squares.data<Real>();
  Real* out = args.out.data<Real>();
  const Real width = static_cast<Real>(args.width), epsilon = static_cast<Real>(args.epsilon);
  RowTiles(args.squares.size(), columns).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Real r = Real(1) / std::sqrt(squares[row] / width + epsilon);
#pragma omp simd
      for (int64_t i = row * columns; i < (row + 1) * columns; ++i) out[i] = gate[i] * x[i] * r;
    }
  });
}

template <class Real>
void GatedNormBackwardCpu(const GatedNormBackwardArgs& args) {
  const int64_t columns = args.x.dim(-1);
  const Real *x = args.x.data<Real>(), *gate = args.gate.data<Real>();
  const Real *squares = args.squares.data<Real>(), *along = args.along.data<Real>();
  const Real* dout = args.dout.data<Real>();
  Real *dx = args.dx.data<Real>(), *dgate = args.dgate.data<Real>();
  const Real width = static_cast<Real>(args.width), epsilon = static_cast<Real>(args.epsilon);
  RowTiles(args.squares.size(), columns).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Real r = Real(1) / std::sqrt(squares[row] / width + epsilon);
      const Real back = along[row] * r * r / width;
#pragma omp simd
      for (int64_t i = row * columns; i < (row + 1) * columns; ++i) {
        const Real d = dout[i], value = x[i];
        dx[i] = r * (d * gate[i] - value * back);
        dgate[i] = d * value * r;
      }
    }
  });
}

}  // namespace eyrie
