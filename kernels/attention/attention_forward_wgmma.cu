// Attention forward on Hopper's warpgroup products (attention_wgmma.cuh). While the softmax of a
// tile of scores runs, so do the product of the probabilities before it with their values and the
// other warpgroup's products: the two take turns (FlashAttention-3, arXiv:2407.08608, sections 3.1
// and 3.2).
#include "kernels/attention/attention_softmax.cuh"
#include "kernels/attention/attention_wgmma.cuh"

namespace eyrie {
namespace {

using namespace attention_wgmma;

// Keys of a tile: as many as registers hold scores of.
constexpr int ForwardKeys(int padded_width) {
  return padded_width == 256 ? 80 : padded_width == 128 ? 176 : 128;
}
template <int kPadded>
using ForwardShape = QueryShape<kPadded, ForwardKeys(kPadded), 1, 2, 2>;

// A warpgroup that computes.
template <class S>
__device__ __forceinline__ void Consume(const AttentionView<Bf16>& view,
                                        const ForwardOutputs<Bf16>& out, const QueryTiles<S>& block,
                                        int group) {
  constexpr int kSteps = S::kKeys / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = 64 * group + static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16;
  const float scale_log2 = view.scale * kLog2E;
  // Products of one warpgroup are started at a time, those of group 0 first.
  const auto await_turn = [&] { NamedBarrier(1 + group, kConsumers * kWarpgroup); };
  const auto pass_turn = [&] { ArriveAtNamedBarrier(2 - group, kConsumers * kWarpgroup); };
  if (group == 1) pass_turn();

  int streamed = 0;
  for (int tile = static_cast<int>(blockIdx.x), turn = 0; tile < block.count;
       tile += static_cast<int>(gridDim.x), ++turn) {
    const int b = block.Sequence(view, tile), first_row = block.FirstRow(view, tile);
    const LaneRows rows(view, b, first_row + warp_row);
    block.held.WaitUntilFull(turn);
    const Sight sight = *block.sight;
    const SegmentTiles keys = block.KeysOf(sight);
    const int count = keys.count();

    float o[S::kWidth / 8][4], scores[S::kKeys / 8][4];
    uint32_t weights[kSteps][4];
    RunningSoftmax softmax;
    float shrink[2];
#pragma unroll
    for (int n = 0; n < S::kWidth / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;
    }
    const auto multiply_keys = [&](int i) {
      MultiplyRows<S::kWidth / 16>(scores, block.Rows(0, group), S::kHeldBox,
                                   block.keys.Buffer(streamed + i), S::kKeyBox);
    };
    const auto add_values = [&](int i) {
      AddTimesRows<kSteps>(o, weights, block.values.Buffer(streamed + i), S::kKeyBox);
    };
    const auto update_softmax = [&](int i) {
      if (!SeenByAll(sight, keys, i)) rows.Mask(keys, i, -INFINITY, scores);
      softmax.Update(scale_log2, scores, shrink);
    };

    block.keys.WaitUntilFull(streamed);
    await_turn();
    WgmmaFence();
    multiply_keys(0);
    pass_turn();
    WgmmaWait<0>();
    Hold(scores);
    block.keys.Release(streamed);
    update_softmax(0);
    PackRows<kSteps>(scores, weights);
    for (int i = 1; i < count; ++i) {
      block.keys.WaitUntilFull(streamed + i);
      await_turn();
      WgmmaFence();
      multiply_keys(i);
      block.values.WaitUntilFull(streamed + i - 1);
      add_values(i - 1);
      pass_turn();
      WgmmaWait<1>();
      Hold(scores);
      block.keys.Release(streamed + i);
      update_softmax(i);
      WgmmaWait<0>();
      Hold(weights);
      Hold(o);
      block.values.Release(streamed + i - 1);
      ShrinkRows(shrink, o);
      PackRows<kSteps>(scores, weights);
    }
    block.held.Release(turn);
    block.values.WaitUntilFull(streamed + count - 1);
    WgmmaFence();
    add_values(count - 1);
    WgmmaWait<0>();
    Hold(weights);
    Hold(o);
    block.values.Release(streamed + count - 1);
    streamed += count;

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto [sum, lse] = softmax.Finish(h, view.scale);
      if (!rows.exists(view, h)) continue;
      const float factor = 1.0f / sum;
      const int64_t at = static_cast<int64_t>(b) * view.rows() + rows.row[h];
      if (lane % 4 == 0) out.lse[at] = lse;
#pragma unroll
      for (int n = 0; n < S::kWidth / 8; ++n) {
        const int column = 8 * n + AccumulatorColumn(lane, 2 * h);
        if (column >= view.width) continue;
        *reinterpret_cast<uint32_t*>(out.o + at * view.width + column) =
            Pack(o[n][2 * h] * factor, o[n][2 * h + 1] * factor);
      }
    }
  }
  if (group == 0) await_turn();  // which the other one has passed on
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    AttentionForwardWgmmaKernel(const __grid_constant__ WgmmaView view,
                                const ForwardOutputs<Bf16> out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  const QueryTiles<S> block(view.problem, shared);
  RunRoles<24>(
      block, [&] { Produce(view, block); },
      [&](int group) { Consume(view.problem, out, block, group); });
#else
  __trap();
#endif
}

template <int kPadded>
void LaunchForward(const AttentionView<Bf16>& view, const ForwardOutputs<Bf16>& out) {
  using S = ForwardShape<kPadded>;
  LaunchQueries<S>("attention_forward", AttentionForwardWgmmaKernel<S>, view, nullptr, out);
}

}  // namespace

bool AttentionRunsWgmma() { return RunsWgmma(AttentionForwardWgmmaKernel<ForwardShape<128>>); }

void AttentionForwardWgmma(const AttentionView<Bf16>& view, const ForwardOutputs<Bf16>& out) {
  switch (PaddedWidth(view.width)) {
    case 64: return LaunchForward<64>(view, out);
    case 128: return LaunchForward<128>(view, out);
    default: return LaunchForward<256>(view, out);
  }
}

}  // namespace eyrie
