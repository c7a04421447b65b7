// CPU bodies of the block maps: a task takes a tile of rows.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/block_map/block_map.h"
#include "kernels/partition.h"
#include "kernels/row_math.h"

namespace eyrie {
namespace block_map {

constexpr int64_t kWidth = kBlockMapWidth;

// Each block of w [C / 4, 4, 4] transposed: by input, so that its four outputs are one vector.
template <class Real>
std::vector<Real> Transposed(const Tensor& w) {
  std::vector<Real> result(static_cast<size_t>(w.size()));
  for (int64_t i = 0; i < w.size(); ++i) {
    const int64_t g = i / (kWidth * kWidth), row = i / kWidth % kWidth, column = i % kWidth;
    result[static_cast<size_t>((g * kWidth + column) * kWidth + row)] = w.data<Real>()[i];
  }
  return result;
}

// out [4] := or += sum over a of block[a][:] in[a].
template <class Real>
inline void Apply(const Real* block, const Real* in, Real* out, bool add) {
  Real sum[kWidth];
  for (int64_t o = 0; o < kWidth; ++o) sum[o] = block[o] * in[0];
  for (int64_t a = 1; a < kWidth; ++a) {
    for (int64_t o = 0; o < kWidth; ++o) sum[o] += block[a * kWidth + o] * in[a];
  }
  // What `out` held before may be anything, also no number.
  for (int64_t o = 0; o < kWidth; ++o) out[o] = add ? out[o] + sum[o] : sum[o];
}

// dy [C] += the row `row` of dgates [.., G] times w [G, C].
template <class Real>
void AddGates(const Tensor& dgates, int64_t row, const Tensor& w, Real* dy) {
  const int64_t gates = w.dim(0), channels = w.dim(1);
  const Real* d = dgates.data<Real>() + row * gates;
  for (int64_t g = 0; g < gates; ++g) {
    AddScaledRow(d[g], w.data<Real>() + g * channels, dy, channels);
  }
}

// dgates^T x [G, C].
template <class Real>
std::vector<Real> GateProducts(const Tensor& dgates, const Tensor& x, const RowTiles& tiles) {
  const int64_t gates = dgates.dim(-1), channels = x.dim(-1), size = gates * channels;
  std::vector<Real> partial(static_cast<size_t>(tiles.count * size));
  tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t g = 0; g < gates; ++g) {
        AddScaledRow(dgates.data<Real>()[row * gates + g], x.data<Real>() + row * channels,
                     partial.data() + tile * size + g * channels, channels);
      }
    }
  });
  std::vector<Real> sum(static_cast<size_t>(size));
  AddRowSum(partial.data(), tiles.count, size, sum.data());
  return sum;
}

}  // namespace block_map

template <class Real>
void BlockMapForwardCpu(const BlockMapForwardArgs& args) {
  using block_map::kWidth;
  const Real* x = args.x.data<Real>();
  const int64_t channels = args.x.dim(-1);
  const int64_t gates = args.gates.defined() ? args.gates.dim(-1) : 0;
  const RowTiles tiles(args.x.size() / std::max<int64_t>(channels, 1), channels);
  bool add = args.accumulate_gates;
  for (const auto& map : args.maps) {
    const std::vector<Real> by_input = block_map::Transposed<Real>(map.w);
    Real* y = map.y.data<Real>();
    tiles.ForEach([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t c = 0; c < channels; c += kWidth) {
          const int64_t at = row * channels + c;
          block_map::Apply(by_input.data() + c * kWidth, x + at, y + at, /*add=*/false);
        }
        for (int64_t g = 0; g < gates; ++g) {
          Real& gate = args.gates.data<Real>()[row * gates + g];
          const Real* line = map.gates_w.data<Real>() + g * channels;
          const Real share = DotOf(y + row * channels, line, channels);
          gate = add ? gate + share : share;
        }
      }
    });
    add = true;
  }
}

template <class Real>
void BlockMapBackwardCpu(const BlockMapBackwardArgs& args) {
  using block_map::kWidth;
  const Real* x = args.x.data<Real>();
  Real* dx = args.dx.data<Real>();
  const int64_t channels = args.x.dim(-1), weights = channels * kWidth;
  const bool gated = args.dgates.defined();
  const RowTiles tiles(args.x.size() / std::max<int64_t>(channels, 1), channels);
  std::vector<Real> products;
  if (gated) products = block_map::GateProducts<Real>(args.dgates, args.x, tiles);
  bool add = args.accumulate;
  for (const auto& map : args.maps) {
    const Real *w = map.w.data<Real>(), *dy = map.dy.data<Real>();
    // Each tile's share of dw.
    std::vector<Real> partial(static_cast<size_t>(tiles.count * weights));
    tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
      std::vector<Real> with_gates(static_cast<size_t>(gated ? channels : 0));
      for (int64_t row = begin; row < end; ++row) {
        const Real* row_dy = dy + row * channels;
        if (gated) {
          std::copy_n(row_dy, channels, with_gates.data());
          block_map::AddGates(args.dgates, row, map.gates_w, with_gates.data());
          row_dy = with_gates.data();
        }
        Real* sum = partial.data() + tile * weights;
        for (int64_t c = 0; c < channels; c += kWidth) {
          const Real *in = x + row * channels + c, *out = row_dy + c;
          block_map::Apply(w + c * kWidth, out, dx + row * channels + c, add);
          for (int64_t o = 0; o < kWidth; ++o, sum += kWidth) {
            for (int64_t i = 0; i < kWidth; ++i) sum[i] += out[o] * in[i];
          }
        }
      }
    });
    AddRowSum(partial.data(), tiles.count, weights, map.dw.data<Real>());
    if (gated) {
      const std::vector<Real> by_input = block_map::Transposed<Real>(map.w);
      for (int64_t at = 0; at < map.dgates_w.size(); at += kWidth) {
        block_map::Apply(by_input.data() + at % channels * kWidth, products.data() + at,
                         map.dgates_w.data<Real>() + at, /*add=*/true);
      }
    }
    add = true;
  }
}

}  // namespace eyrie
