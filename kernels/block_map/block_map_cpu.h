// CPU body of the block maps: a task takes a tile of rows.
#pragma once

#include <vector>

#include "kernels/block_map/block_map.h"
#include "kernels/partition.h"

namespace eyrie {

template <class Real>
void BlockMapCpu(const BlockMapArgs& args) {
  constexpr int64_t kWidth = kBlockMapWidth;
  const Real *x = args.x.data<Real>(), *w = args.w.data<Real>();
  Real* y = args.y.data<Real>();
  const int64_t channels = args.x.dim(-1), blocks = channels / kWidth;
  // By input, so that a block's four outputs are one vector.
  std::vector<Real> by_input(static_cast<size_t>(blocks * kWidth * kWidth));
  for (int64_t g = 0; g < blocks; ++g) {
    for (int64_t i = 0; i < kWidth; ++i) {
      for (int64_t o = 0; o < kWidth; ++o) {
        const Real* block = w + g * kWidth * kWidth;
        by_input[static_cast<size_t>((g * kWidth + i) * kWidth + o)] =
            args.transposed ? block[i * kWidth + o] : block[o * kWidth + i];
      }
    }
  }
  const Real kept = args.accumulate ? Real(1) : Real(0);
  const auto tiles = RowTiles(args.x.size() / std::max<int64_t>(channels, 1), channels);
  tiles.ForEach([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Real *in = x + row * channels, *block = by_input.data();
      Real* out = y + row * channels;
      for (int64_t g = 0; g < blocks; ++g, in += kWidth, out += kWidth) {
        Real sum[kWidth];
        for (int64_t o = 0; o < kWidth; ++o) sum[o] = block[o] * in[0];
        block += kWidth;
        for (int64_t i = 1; i < kWidth; ++i, block += kWidth) {
          for (int64_t o = 0; o < kWidth; ++o) sum[o] += block[o] * in[i];
        }
        // What y held before may be anything, also no number.
        for (int64_t o = 0; o < kWidth; ++o) {
          out[o] = kept == Real(0) ? sum[o] : out[o] + sum[o];
        }
      }
    }
  });
}

template <class Real>
void BlockMapWeightGradCpu(const BlockMapWeightGradArgs& args) {
  constexpr int64_t kWidth = kBlockMapWidth;
  const Real *x = args.x.data<Real>(), *dy = args.dy.data<Real>();
  const int64_t channels = args.x.dim(-1), blocks = channels / kWidth;
  const int64_t weights = channels * kWidth;
  // Each tile's share of dw.
  const auto tiles = RowTiles(args.x.size() / std::max<int64_t>(channels, 1), channels);
  std::vector<Real> partial(static_cast<size_t>(tiles.count * weights));
  tiles.ForEach([&](int64_t tile, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Real *in = x + row * channels, *out = dy + row * channels;
      Real* sum = partial.data() + tile * weights;
      for (int64_t g = 0; g < blocks; ++g, in += kWidth, out += kWidth) {
        for (int64_t o = 0; o < kWidth; ++o, sum += kWidth) {
          for (int64_t i = 0; i < kWidth; ++i) sum[i] += out[o] * in[i];
        }
      }
    }
  });
  AddRowSum(partial.data(), tiles.count, weights, args.dw.data<Real>());
}

}  // namespace eyrie
