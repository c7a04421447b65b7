// The gradient of attention's queries on Hopper's warpgroup products (attention_wgmma.cuh):
//
//   dS = P (dout V^T - delta)      dq = scale dS K
//
// with P computed anew from the rows' log-sum-exp. While P of a tile of keys is computed, the last
// product of the tile before it and dout V^T of its own run.
#include "kernels/attention/attention_wgmma.cuh"

namespace eyrie {
namespace {

using namespace attention_wgmma;

// Keys of a tile: as many as registers and shared memory hold.
constexpr int QueriesKeys(int padded_width) {
  return padded_width == 256 ? 48 : padded_width == 128 ? 96 : 128;
}
template <int kPadded>
using QueriesShape = QueryShape<kPadded, QueriesKeys(kPadded), 2, kPadded == 256 ? 2 : 3, 2>;

// A warpgroup that computes.
template <class S>
__device__ __forceinline__ void Consume(const AttentionView<Bf16>& view, const RowRecord* records,
                                        Bf16* dq, const QueryTiles<S>& block, int group) {
  constexpr int kSteps = S::kKeys / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = 64 * group + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16;
  const float scale_log2 = view.scale * kLog2E;

  int streamed = 0;
  for (int tile = static_cast<int>(blockIdx.x), turn = 0; tile < block.count;
       tile += static_cast<int>(gridDim.x), ++turn) {
    const int b = block.Sequence(view, tile), first_row = block.FirstRow(view, tile);
    const LaneRows rows(view, b, first_row + warp_row);
    // Rows beyond the last one hold zeros, which give zeros.
    float lse[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool exists = rows.exists(view, h);
      const int64_t at = view.Record(b, rows.row[h]);
      lse[h] = exists ? records[at].lse : 0.0f;
      delta[h] = exists ? records[at].delta : 0.0f;
    }
    block.held.WaitUntilFull(turn);
    const Sight sight = *block.sight;
    const SegmentTiles keys = block.KeysOf(sight);
    const int count = keys.count();

    float sums[S::kWidth / 8][4], p[S::kKeys / 8][4], dp[S::kKeys / 8][4];
    uint32_t ds[kSteps][4];
#pragma unroll
    for (int n = 0; n < S::kWidth / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }
    const auto multiply_keys = [&](int i) {
      block.keys.WaitUntilFull(streamed + i);
      WgmmaFence();
      MultiplyRows<S::kWidth / 16>(p, block.Rows(0, group), S::kHeldBox,
                                   block.keys.Buffer(streamed + i), S::kKeyBox);
    };
    const auto multiply_values = [&](int i) {
      block.values.WaitUntilFull(streamed + i);
      MultiplyRows<S::kWidth / 16>(dp, block.Rows(1, group), S::kHeldBox,
                                   block.values.Buffer(streamed + i), S::kKeyBox);
    };
    const auto add_keys = [&](int i) {
      AddTimesRows<kSteps>(sums, ds, block.keys.Buffer(streamed + i), S::kKeyBox);
    };
    const auto find_p = [&] {
#pragma unroll
      for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) p[n][j] = Exp2(fmaf(p[n][j], scale_log2, -lse[j / 2]));
      }
    };
    const auto find_ds = [&](int i) {
#pragma unroll
      for (int n = 0; n < S::kKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) p[n][j] *= dp[n][j] - delta[j / 2];
      }
      if (!SeenByAll(sight, keys, i)) rows.Mask(keys, i, 0.0f, p);
      PackRows<kSteps>(p, ds);
    };

    multiply_keys(0);
    multiply_values(0);
    WgmmaWait<1>();
    Hold(p);
    find_p();
    WgmmaWait<0>();
    Hold(dp);
    block.values.Release(streamed);
    find_ds(0);
    for (int i = 1; i < count; ++i) {
      multiply_keys(i);
      add_keys(i - 1);
      multiply_values(i);
      WgmmaWait<2>();
      Hold(p);
      find_p();
      WgmmaWait<1>();
      Hold(ds);
      Hold(sums);
      block.keys.Release(streamed + i - 1);
      WgmmaWait<0>();
      Hold(dp);
      block.values.Release(streamed + i);
      find_ds(i);
    }
    block.held.Release(turn);
    WgmmaFence();
    add_keys(count - 1);
    WgmmaWait<0>();
    Hold(ds);
    Hold(sums);
    streamed += count;
    block.keys.Release(streamed - 1);

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Bf16* to = view.QueryRow(dq, b, rows.row[h]);
      if (to == nullptr) continue;
#pragma unroll
      for (int n = 0; n < S::kWidth / 8; ++n) {
        const int column = 8 * n + AccumulatorColumn(lane, 2 * h);
        if (column >= view.width) continue;
        *reinterpret_cast<uint32_t*>(to + column) =
            Pack(sums[n][2 * h] * view.scale, sums[n][2 * h + 1] * view.scale);
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    AttentionBackwardQueriesWgmmaKernel(const __grid_constant__ WgmmaView view,
                                        const RowRecord* records, Bf16* dq) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTiles<S> block(view.problem, shared);
  RunRoles<40>(
      block, [&] { Produce(view, block); },
      [&](int group) { Consume(view.problem, records, dq, block, group); });
#else
  __trap();
#endif
}

template <int kPadded>
void LaunchBackward(const AttentionView<Bf16>& view, const Bf16* dout, const RowRecord* records,
                    Bf16* dq) {
  using S = QueriesShape<kPadded>;
  LaunchQueries<S>("attention_backward dq", AttentionBackwardQueriesWgmmaKernel<S>, view, dout,
                   records, dq);
}

}  // namespace

void AttentionBackwardQueriesWgmma(const AttentionView<Bf16>& view, const Bf16* dout,
                                   const RowRecord* records, Bf16* dq) {
  switch (PaddedWidth(view.width)) {
    case 64: return LaunchBackward<64>(view, dout, records, dq);
    case 128: return LaunchBackward<128>(view, dout, records, dq);
    default: return LaunchBackward<256>(view, dout, records, dq);
  }
}

}  // namespace eyrie
