// CPU body of the rotary embedding. B sequences, T tokens, H heads of width dh, n = dh / 4 angles.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/partition.h"
#include "kernels/rotary/rotary.h"

namespace eyrie {

template <class Real>
void RotaryCpu(const RotaryArgs& args) {
  const int64_t tokens = args.positions.size(), heads = args.x.dim(2), width = args.x.dim(3);
  const int64_t n = width / 4;
  const int32_t* positions = args.positions.data<int32_t>();
  Real* x = args.x.data<Real>();

  std::vector<double> frequency(static_cast<size_t>(n));
  const double direction = args.inverse ? -1 : 1;
  for (int64_t i = 0; i < n; ++i) {
    const double exponent = -static_cast<double>(i) / static_cast<double>(n);
    frequency[static_cast<size_t>(i)] = direction * std::pow(args.base, exponent);
  }

  RowTiles(tokens, heads * width).ForEach([&](int64_t, int64_t begin, int64_t end) {
    std::vector<Real> cosines(static_cast<size_t>(n)), sines(static_cast<size_t>(n));
    const double* f = frequency.data();
    Real *cosine = cosines.data(), *sine = sines.data();
    for (int64_t token = begin; token < end; ++token) {
      const double position = positions[token];
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) cosine[i] = static_cast<Real>(Cos(position * f[i]));
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sine[i] = static_cast<Real>(Sin(position * f[i]));
      for (int64_t head = 0; head < heads; ++head) {
        Real* low = x + (token * heads + head) * width;
        Real* high = low + n;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          const Real a = low[i], b = high[i];
          low[i] = a * cosine[i] - b * sine[i];
          high[i] = b * cosine[i] + a * sine[i];
        }
      }
    }
  });
}

}  // namespace eyrie
