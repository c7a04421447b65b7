// Attention forward on the tensor cores: FlashAttention-2 (Dao, arXiv:2307.08691) with all heads'
// queries as the rows of one matrix, since they share keys and values. A block holds 128 query
// rows and streams tiles of 64 keys and values through two buffers; scores and probabilities stay
// in registers. Where queries are few, several blocks share the keys of a tile of rows.
#include "core/early_launch.cuh"
#include "core/round.h"
#include "kernels/attention/attention_kernels.cuh"
#include "kernels/attention/attention_softmax.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

// A warp has kTiles times 16 rows: 32 read each operand of shared memory half as often as 16, and
// 256 columns of sums leave registers for 16.
template <int kPadded>
struct ForwardShape {
  static constexpr int kWidth = kPadded;
  static constexpr int kTiles = kWidth == 256 ? 1 : 2;
  static constexpr int kHeld = kHeldByTensorCores, kStreamed = ForwardStreamed(kWidth);
  static constexpr int kThreads = kHeld / (16 * kTiles) * 32;
  static constexpr int kBlocks = kWidth == 256 ? 1 : 2;  // a multiprocessor
  static constexpr uint32_t kHeldBytes = kHeld * kWidth * 2,
                            kStreamedBytes = kStreamed * kWidth * 2;
  // Queries; two buffers of keys and values; what rows see.
  static constexpr uint32_t kStage = 2 * kStreamedBytes, kRows = kHeldBytes + 2 * kStage;
  static constexpr uint32_t kShared = kRows + kHeld * sizeof(int2);
  static_assert(kShared <= kA100SharedMemory);
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    AttentionForwardKernel(const AttentionView<Bf16> view, const ForwardOutputs<Bf16> out) {
  LetNextStart();
  AwaitEarlier();
  constexpr int kWidth = S::kWidth, kTiles = S::kTiles;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t queries = SharedAddress(shared), stages = queries + S::kHeldBytes;
  int2* seen = reinterpret_cast<int2*>(shared + S::kRows);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * kTiles;

  // The last rows of a sequence see the most keys and go first.
  const int b = static_cast<int>(blockIdx.x) % view.sequences;
  const int row_begin =
      static_cast<int>(gridDim.x / view.sequences - 1 - blockIdx.x / view.sequences) * S::kHeld;
  const int part = static_cast<int>(blockIdx.y);
  CopyTile<kWidth, S::kHeld, S::kThreads>(
      queries, view.width, view.q, [&](int r) { return view.QueryRow(view.q, b, row_begin + r); });
  const Sight sight = LookAtRows<S::kHeld>(view, b, row_begin, seen);
  const TileRange tiles = PartOf(sight.KeyTiles(S::kStreamed), part, out.parts);
  const auto copy_keys = [&](int tile) {
    const int key_begin = sight.first_min + tile * S::kStreamed;
    const uint32_t stage = stages + (tile % 2) * S::kStage;
    CopyTile<kWidth, S::kStreamed, S::kThreads>(stage, view.width, view.q, [&](int r) {
      return view.KeyRow(view.k, view.past_k, b, key_begin + r, sight.token_max + 1);
    });
    CopyTile<kWidth, S::kStreamed, S::kThreads>(
        stage + S::kStreamedBytes, view.width, view.q, [&](int r) {
          return view.KeyRow(view.v, view.past_v, b, key_begin + r, sight.token_max + 1);
        });
  };
  if (tiles.begin < tiles.end) copy_keys(tiles.begin);

  const float scale_log2 = view.scale * kLog2E;
  Accumulators<kTiles, kWidth> o;
  SetZero<kTiles, kWidth>(o);
  RunningSoftmax softmax[kTiles];
  const bool has_rows = row_begin + warp_row < view.rows();
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    // After the barrier this tile is there, and nobody reads the one before it any more.
    WaitForCopies();
    __syncthreads();
    if (tile + 1 < tiles.end) copy_keys(tile + 1);
    if (!has_rows) continue;
    const int key_begin = sight.first_min + tile * S::kStreamed;
    const uint32_t stage = stages + (tile % 2) * S::kStage;
    Accumulators<kTiles, S::kStreamed> scores;
    MultiplyTransposed<kWidth, kTiles, S::kStreamed>(queries + warp_row * kWidth * 2, stage,
                                                     scores);
    if (!sight.SeesAll(key_begin, key_begin + S::kStreamed)) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int2 range = seen[warp_row + 16 * m + AccumulatorRow(lane, 2 * h)];
#pragma unroll
          for (int n = 0; n < S::kStreamed / 8; ++n) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; ++i) {
              const int key = key_begin + 8 * n + AccumulatorColumn(lane, i);
              if (key < range.x || key > range.y) scores[m][n][i] = -INFINITY;
            }
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float shrink[2];
      softmax[m].Update(scale_log2, scores[m], shrink);
      ShrinkRows(shrink, o[m]);
    }
    AddProduct<kWidth, kTiles, S::kStreamed>(scores, stage + S::kStreamedBytes, o);
  }
  WaitForCopies();  // of the queries, in a part without tiles

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto [sum, lse] = softmax[m].Finish(h, view.scale);
      const int row = row_begin + warp_row + 16 * m + AccumulatorRow(lane, 2 * h);
      if (row >= view.rows()) continue;
      const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int64_t all_rows = static_cast<int64_t>(view.sequences) * view.rows();
      const int64_t at = static_cast<int64_t>(b) * view.rows() + row;
      const bool whole = out.partial_o == nullptr;
      float* partial = whole ? nullptr : out.partial_o + (part * all_rows + at) * view.width;
      if (lane % 4 == 0) (whole ? out.lse[at] : out.partial_lse[part * all_rows + at]) = lse;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        const int column = 8 * n + AccumulatorColumn(lane, 2 * h);
        if (column >= view.width) continue;
        const float low = o[m][n][2 * h] * factor, high = o[m][n][2 * h + 1] * factor;
        if (whole) {
          *reinterpret_cast<uint32_t*>(out.o + at * view.width + column) = Pack(low, high);
        } else {
          *reinterpret_cast<float2*>(partial + column) = make_float2(low, high);
        }
      }
    }
  }
}

template <int kPadded>
void LaunchForward(const AttentionView<Bf16>& view, const ForwardOutputs<Bf16>& out) {
  using S = ForwardShape<kPadded>;
  const auto kernel = AttentionForwardKernel<S>;
  AllowSharedMemory(kernel, S::kShared);
  const int64_t rows = int64_t{view.tokens} * view.heads;
  const dim3 grid(static_cast<unsigned>(view.sequences * CeilDiv(rows, S::kHeld)),
                  static_cast<unsigned>(out.parts));
  LaunchEarly("attention_forward", kernel, grid, dim3(S::kThreads), S::kShared, view, out);
}

}  // namespace

void AttentionForwardMma(const AttentionView<Bf16>& view, const ForwardOutputs<Bf16>& out) {
  switch (PaddedWidth(view.width)) {
    case 64: return LaunchForward<64>(view, out);
    case 128: return LaunchForward<128>(view, out);
    default: return LaunchForward<256>(view, out);
  }
}

}  // namespace eyrie
