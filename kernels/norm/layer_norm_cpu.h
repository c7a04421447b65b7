// CPU body of LayerNorm. N rows of G groups of D channels; a task takes a tile of rows, each group
// read a few times while it is in cache.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/norm/group_statistics.h"
#include "kernels/norm/layer_norm.h"
#include "kernels/partition.h"

namespace eyrie {

// Of one group, which is read twice.
template <class Real>
GroupStatistics<Real> StatisticsOf(const Real* x, int64_t width, Real epsilon) {
  const Real count = static_cast<Real>(width);
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < width; ++c) sum += x[c];
  const Real mean = sum / count;
  Real squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < width; ++c) squares += (x[c] - mean) * (x[c] - mean);
  return {mean, Real(1) / std::sqrt(squares / count + epsilon)};
}

template <class Real>
void LayerNormForwardCpu(const LayerNormForwardArgs& args) {
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1), row_width = groups * width;
  const Real *x = args.x.data<Real>(), *weight = args.weight.data<Real>();
  Real *y = args.y.data<Real>(), *mean = args.mean.data<Real>(), *rstd = args.rstd.data<Real>();
  const Real epsilon = static_cast<Real>(args.epsilon);

  RowTiles(args.x.size() / row_width, row_width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t group = begin * groups; group < end * groups; ++group) {
      const Real *x_group = x + group * width, *w = weight + group % groups * width;
      Real* y_group = y + group * width;
      const GroupStatistics<Real> found = StatisticsOf(x_group, width, epsilon);
      mean[group] = found.mean;
      rstd[group] = found.rstd;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        y_group[c] = (x_group[c] - found.mean) * found.rstd * (Real(1) + w[c]);
      }
    }
  });
}

template <class Real>
void LayerNormBackwardCpu(const LayerNormBackwardArgs& args) {
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1), row_width = groups * width;
  const Real *x = args.x.data<Real>(), *weight = args.weight.data<Real>();
  const Real *mean = args.mean.data<Real>(), *rstd = args.rstd.data<Real>();
  const Real *dy = args.dy.data<Real>(), *dresidual = args.dresidual.data<Real>();
  Real* dx = args.dx.data<Real>();

  // Each tile's share of dweight, [tiles, G D].
  const RowTiles tiles(args.x.size() / row_width, row_width);
  std::vector<Real> partial(static_cast<size_t>(tiles.count * row_width));

  tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
    for (int64_t group = begin * groups; group < end * groups; ++group) {
      const int64_t first = group * width, column = group % groups * width;
      const Real *x_group = x + first, *dy_group = dy + first, *w = weight + column;
      Real *dx_group = dx + first, *dw = partial.data() + tile * row_width + column;
      const Real middle = mean[group], r = rstd[group];
      // Of u = dy (1 + weight), and of u times the normed x.
      Real sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t c = 0; c < width; ++c) {
        const Real u = dy_group[c] * (Real(1) + w[c]);
        sum += u;
        dot += u * (x_group[c] - middle) * r;
      }
      const Real shift = sum / static_cast<Real>(width), along = dot / static_cast<Real>(width);
      const auto finish = [&](const auto& residual) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          const Real u = dy_group[c] * (Real(1) + w[c]), normed = (x_group[c] - middle) * r;
          dx_group[c] = residual(c) + r * (u - shift - normed * along);
          dw[c] += dy_group[c] * normed;
        }
      };
      if (dresidual != nullptr) {
        finish([&](int64_t c) { return dresidual[first + c]; });
      } else {
        finish([](int64_t) { return Real(0); });
      }
    }
  });
  AddRowSum(partial.data(), tiles.count, row_width, args.dweight.data<Real>());
}

}  // namespace eyrie
