// CPU body of RMSNorm. N rows of width D; a task takes a tile of rows, each read twice while it is
// in cache.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/norm/rms_norm.h"
#include "kernels/partition.h"

namespace eyrie {
namespace rms_norm {

// The norm's weight, or the zeros that an absent one stands for.
template <class Real>
class Weight {
 public:
  Weight(const Tensor& weight, int64_t width)
      : zeros_(weight.defined() ? 0 : static_cast<size_t>(width)),
        data_(weight.defined() ? weight.data<Real>() : zeros_.data()) {}
  const Real* data() const { return data_; }

 private:
  std::vector<Real> zeros_;
  const Real* data_;
};

}  // namespace rms_norm

template <class Real>
void RmsNormForwardCpu(const RmsNormForwardArgs& args) {
  const int64_t width = args.x.dim(-1), rows = args.rstd.size();
  const rms_norm::Weight<Real> weights(args.weight, width);
  const Real *x = args.x.data<Real>(), *weight = weights.data();
  Real *y = args.y.data<Real>(), *rstd = args.rstd.data<Real>();
  const Real epsilon = static_cast<Real>(args.epsilon);

  RowTiles(rows, width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Real* x_row = x + row * width;
      Real* y_row = y + row * width;
      Real squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < width; ++c) squares += x_row[c] * x_row[c];
      const Real r = Real(1) / std::sqrt(squares / static_cast<Real>(width) + epsilon);
      rstd[row] = r;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) y_row[c] = x_row[c] * r * (Real(1) + weight[c]);
    }
  });
}

template <class Real>
void RmsNormBackwardCpu(const RmsNormBackwardArgs& args) {
  const int64_t width = args.x.dim(-1), rows = args.rstd.size();
  const rms_norm::Weight<Real> weights(args.weight, width);
  const Real *x = args.x.data<Real>(), *weight = weights.data();
  const Real *rstd = args.rstd.data<Real>(), *dy = args.dy.data<Real>();
  const Real* dresidual = args.dresidual.data<Real>();
  Real* dx = args.dx.data<Real>();

  // Each tile's share of dweight, [tiles, D].
  const RowTiles tiles(rows, width);
  std::vector<Real> partial(static_cast<size_t>(tiles.count * width));

  tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
    Real* dw = partial.data() + tile * width;
    for (int64_t row = begin; row < end; ++row) {
      const Real *x_row = x + row * width, *dy_row = dy + row * width;
      const Real r = rstd[row];
      Real dot = 0;  // sum of dy (1 + weight) x
#pragma omp simd reduction(+ : dot)
      for (int64_t c = 0; c < width; ++c) dot += dy_row[c] * (Real(1) + weight[c]) * x_row[c];
      const Real along = dot * r * r / static_cast<Real>(width);
      const auto finish = [&](const auto& residual) {
        Real* dx_row = dx + row * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          const Real u = dy_row[c] * (Real(1) + weight[c]);
          dx_row[c] = residual(c) + r * (u - x_row[c] * along);
          dw[c] += dy_row[c] * x_row[c] * r;
        }
      };
      if (dresidual != nullptr) {
        finish([&](int64_t c) { return dresidual[row * width + c]; });
      } else {
        finish([](int64_t) { return Real(0); });
      }
    }
  });
  if (!args.dweight.defined()) return;
  AddRowSum(partial.data(), tiles.count, width, args.dweight.data<Real>());
}

}  // namespace eyrie
