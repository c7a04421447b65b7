// CPU body of LRPE. B sequences, T tokens, H heads of width dh; a task takes a tile of tokens.
#pragma once

#include <vector>

#include "core/vector_math.h"
#include "kernels/lrpe/lrpe.h"
#include "kernels/partition.h"

namespace eyrie {
namespace lrpe {

template <class Real>
struct Silu {
  explicit Silu(Real x) {
    const Real s = Sigmoid(x);
    value = x * s;
    slope = s * (Real(1) + x * (Real(1) - s));
  }
  Real value, slope;
};

}  // namespace lrpe

template <class Real>
void LrpeForwardCpu(const LrpeForwardArgs& args) {
  const Real *x = args.x.data<Real>(), *theta = args.theta.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real* y = args.y.data<Real>();
  if (theta == nullptr) {
    ForElements(args.x.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) y[i] = lrpe::Silu<Real>(x[i]).value;
    });
    return;
  }
  const int64_t heads = args.x.dim(2), width = args.x.dim(3);
  RowTiles(args.positions.size(), heads * width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin * heads; row < end * heads; ++row) {
      const double position = positions[row / heads];
      const Real *x_row = x + row * width, *angles = theta + row % heads * width;
      Real* y_row = y + 2 * row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const double angle = position * static_cast<double>(angles[i]);
        const Real value = lrpe::Silu<Real>(x_row[i]).value;
        y_row[i] = value * static_cast<Real>(Cos(angle));
        y_row[width + i] = value * static_cast<Real>(Sin(angle));
      }
    }
  });
}

template <class Real>
void LrpeBackwardCpu(const LrpeBackwardArgs& args) {
  const Real *x = args.x.data<Real>(), *theta = args.theta.data<Real>();
  const Real* dy = args.dy.data<Real>();
  const int32_t* positions = args.positions.data<int32_t>();
  Real* dx = args.dx.data<Real>();
  if (theta == nullptr) {
    ForElements(args.x.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) dx[i] = dy[i] * lrpe::Silu<Real>(x[i]).slope;
    });
    return;
  }
  const int64_t heads = args.x.dim(2), width = args.x.dim(3);
  // Each tile's share of dtheta, [tiles, H, dh].
  const RowTiles tiles(args.positions.size(), heads * width);
  std::vector<Real> partial(static_cast<size_t>(tiles.count * heads * width));
  tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
    for (int64_t row = begin * heads; row < end * heads; ++row) {
      const double position = positions[row / heads];
      const int64_t channels = row % heads * width;
      const Real *x_row = x + row * width, *angles = theta + channels;
      const Real* dy_row = dy + 2 * row * width;
      Real *dx_row = dx + row * width, *dangles = partial.data() + tile * heads * width + channels;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const double angle = position * static_cast<double>(angles[i]);
        const lrpe::Silu<Real> silu(x_row[i]);
        const Real cosine = static_cast<Real>(Cos(angle)), sine = static_cast<Real>(Sin(angle));
        const Real low = dy_row[i], high = dy_row[width + i];
        dx_row[i] = (low * cosine + high * sine) * silu.slope;
        dangles[i] += static_cast<Real>(position) * silu.value * (high * cosine - low * sine);
      }
    }
  });
  AddRowSum(partial.data(), tiles.count, heads * width, args.dtheta.data<Real>());
}

}  // namespace eyrie
