// CPU body of the gated LayerNorm. N rows of G groups of D channels; a task takes a tile of rows,
// each group read a few times while it is in cache.
#pragma once

#include <vector>

#include "core/vector_math.h"
#include "kernels/gated_norm/gated_layer_norm.h"
#include "kernels/norm/layer_norm_cpu.h"

namespace eyrie {

template <class Real>
void GatedLayerNormForwardCpu(const GatedLayerNormForwardArgs& args) {
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1), row_width = groups * width;
  const Real *x = args.x.data<Real>(), *weight = args.weight.data<Real>();
  const Real *skip = args.skip.data<Real>(), *s = args.s.data<Real>();
  const Real* gate = args.gate.data<Real>();
  Real *out = args.out.data<Real>(), *mean = args.mean.data<Real>(), *rstd = args.rstd.data<Real>();
  const Real epsilon = static_cast<Real>(args.epsilon);
  const bool silu = args.activation == Activation::kSilu;

  RowTiles(args.x.size() / row_width, row_width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t group = begin * groups; group < end * groups; ++group) {
      const int64_t first = group * width, column = group % groups * width;
      const Real *x_group = x + first, *w = weight + column, *z = gate + first;
      Real* to = out + first;
      const GroupStatistics<Real> found = StatisticsOf(x_group, width, epsilon);
      mean[group] = found.mean;
      rstd[group] = found.rstd;
      const auto finish = [&](const auto& skipped) {
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          const Real value = (x_group[c] - found.mean) * found.rstd * (Real(1) + w[c]) + skipped(c);
          to[c] = value * (silu ? z[c] : Real(1)) * Sigmoid(z[c]);
        }
      };
      if (s != nullptr) {
        finish([&](int64_t c) { return skip[column + c] * s[first + c]; });
      } else {
        finish([](int64_t) { return Real(0); });
      }
    }
  });
}

template <class Real>
void GatedLayerNormBackwardCpu(const GatedLayerNormBackwardArgs& args) {
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1), row_width = groups * width;
  const Real *x = args.x.data<Real>(), *weight = args.weight.data<Real>();
  const Real *skip = args.skip.data<Real>(), *s = args.s.data<Real>();
  const Real *gate = args.gate.data<Real>(), *dout = args.dout.data<Real>();
  const Real *mean = args.mean.data<Real>(), *rstd = args.rstd.data<Real>();
  Real *dx = args.dx.data<Real>(), *ds = args.ds.data<Real>(), *dgate = args.dgate.data<Real>();
  Real* x_dx = args.x_dx.data<Real>();
  const Real epsilon = static_cast<Real>(args.epsilon);
  const Real count = static_cast<Real>(width);
  const bool silu = args.activation == Activation::kSilu;

  // Each tile's shares of [dweight; dskip], [2, tiles, G D].
  const RowTiles tiles(args.x.size() / row_width, row_width);
  const int64_t shares = tiles.count * row_width;
  std::vector<Real> partial(static_cast<size_t>((s != nullptr ? 2 : 1) * shares));

  tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
    // Of one group: its normed x, and the gradient of what is gated.
    std::vector<Real> normed_of(static_cast<size_t>(width)), dvalue_of(normed_of.size());
    Real *normed = normed_of.data(), *dvalue = dvalue_of.data();
    for (int64_t group = begin * groups; group < end * groups; ++group) {
      const int64_t first = group * width, column = group % groups * width;
      const Real *x_group = x + first, *w = weight + column, *z = gate + first, *d = dout + first;
      Real *dz = dgate + first, *dx_group = dx + first;
      Real* dw = partial.data() + tile * row_width + column;
      const Real middle = mean[group], r = rstd[group];
      // Of u = dvalue (1 + weight), and of u times the normed x.
      Real sum = 0, dot = 0;
      const auto through_gate = [&](const auto& skipped) {
#pragma omp simd reduction(+ : sum, dot)
        for (int64_t c = 0; c < width; ++c) {
          normed[c] = (x_group[c] - middle) * r;
          // act(z) = f sigmoid(z), with f = z or 1.
          const Real a = Sigmoid(z[c]), f = silu ? z[c] : Real(1), df = silu ? Real(1) : Real(0);
          const Real value = normed[c] * (Real(1) + w[c]) + skipped(c);
          dvalue[c] = d[c] * f * a;
          dz[c] = d[c] * value * a * (df + f * (Real(1) - a));
          const Real u = dvalue[c] * (Real(1) + w[c]);
          sum += u;
          dot += u * normed[c];
        }
      };
      if (s != nullptr) {
        const Real *skip_group = skip + column, *s_group = s + first;
        Real *ds_group = ds + first, *dskip = partial.data() + shares + tile * row_width + column;
        through_gate([&](int64_t c) { return skip_group[c] * s_group[c]; });
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          ds_group[c] = dvalue[c] * skip_group[c];
          dskip[c] += dvalue[c] * s_group[c];
        }
      } else {
        through_gate([](int64_t) { return Real(0); });
      }
      const Real shift = sum / count, along = dot / count;
      if (x_dx != nullptr) x_dx[group] = dot * epsilon * r * r;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        dx_group[c] = r * (dvalue[c] * (Real(1) + w[c]) - shift - normed[c] * along);
        dw[c] += dvalue[c] * normed[c];
      }
    }
  });
  AddRowSum(partial.data(), tiles.count, row_width, args.dweight.data<Real>());
  if (s == nullptr) return;
  AddRowSum(partial.data() + shares, tiles.count, row_width, args.dskip.data<Real>());
}

}  // namespace eyrie
