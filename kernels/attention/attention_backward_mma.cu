// Attention backward on the tensor cores, in two kernels that each compute the probabilities anew
// from the rows' log-sum-exp (Dao, arXiv:2307.08691, algorithm 2) and need no atomics:
//
//   dS = P (dout V^T - delta)      dq = scale dS K      dk = scale dS^T q      dv = P^T dout
//
// For dq a block holds 128 query rows and streams keys. For dk and dv it holds 128 keys and streams
// query rows, all heads in turn: products are computed transposed, [keys, rows], so that P^T and
// dS^T lie in registers as the next product needs them.
#include "core/round.h"
#include "kernels/attention/attention_kernels.cuh"
#include "kernels/mma.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

template <int kPadded>
struct BackwardShape {
  static constexpr int kWidth = kPadded;
  static constexpr int kHeld = kHeldByTensorCores, kStreamed = BackwardStreamed(kWidth);
  static constexpr int kThreads = kHeld / 16 * 32;  // 16 rows a warp
  static constexpr uint32_t kHeldBytes = kHeld * kWidth * 2,
                            kStreamedBytes = kStreamed * kWidth * 2;
  // Two held tiles; two buffers of two streamed tiles and, for dk and dv, the rows' records; what
  // rows see, for dq.
  static constexpr uint32_t kRecords = 2 * kStreamedBytes;
  static constexpr uint32_t kStage = kRecords + kStreamed * sizeof(RowRecord);
  static constexpr uint32_t kStages = 2 * kHeldBytes, kRows = kStages + 2 * kStage;
  static constexpr uint32_t kShared = kRows + kHeld * sizeof(int2);
  static_assert(kShared <= kA100SharedMemory);
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttentionBackwardQueriesKernel(const AttentionView<Bf16> view, const Bf16* dout,
                                   const RowRecord* records, Bf16* dq) {
  constexpr int kWidth = S::kWidth;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t queries = SharedAddress(shared), douts = queries + S::kHeldBytes;
  const uint32_t stages = queries + S::kStages;
  int2* seen = reinterpret_cast<int2*>(shared + S::kRows);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;

  // The last rows of a sequence see the most keys and go first.
  const int b = static_cast<int>(blockIdx.x) % view.sequences;
  const int row_begin =
      static_cast<int>(gridDim.x / view.sequences - 1 - blockIdx.x / view.sequences) * S::kHeld;
  CopyTile<kWidth, S::kHeld, S::kThreads>(
      queries, view.width, view.q, [&](int r) { return view.QueryRow(view.q, b, row_begin + r); });
  CopyTile<kWidth, S::kHeld, S::kThreads>(
      douts, view.width, view.q, [&](int r) { return view.QueryRow(dout, b, row_begin + r); });
  const Sight sight = LookAtRows<S::kHeld>(view, b, row_begin, seen);
  const TileRange tiles = sight.KeyTiles(S::kStreamed);
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
  copy_keys(tiles.begin);

  // Rows beyond the last one hold zeros, which give zeros.
  float lse[2], delta[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row_begin + warp_row + AccumulatorRow(lane, 2 * h);
    const bool exists = row < view.rows();
    const int64_t at = view.Record(b, row);
    lse[h] = exists ? records[at].lse : 0.0f;
    delta[h] = exists ? records[at].delta : 0.0f;
  }
  const float scale_log2 = view.scale * kLog2E;
  Accumulators<1, kWidth> sums;
  SetZero<1, kWidth>(sums);
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    // After the barrier this tile is there, and nobody reads the one before it any more.
    WaitForCopies();
    __syncthreads();
    if (tile + 1 < tiles.end) copy_keys(tile + 1);
    const int key_begin = sight.first_min + tile * S::kStreamed;
    const uint32_t stage = stages + (tile % 2) * S::kStage;
    Accumulators<1, S::kStreamed> p, ds;
    MultiplyTransposed<kWidth, 1, S::kStreamed>(queries + warp_row * kWidth * 2, stage, p);
    MultiplyTransposed<kWidth, 1, S::kStreamed>(douts + warp_row * kWidth * 2,
                                                stage + S::kStreamedBytes, ds);
    const bool masked = !sight.SeesAll(key_begin, key_begin + S::kStreamed);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int2 range = make_int2(INT_MIN, INT_MAX);
      if (masked) range = seen[warp_row + AccumulatorRow(lane, 2 * h)];
#pragma unroll
      for (int n = 0; n < S::kStreamed / 8; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          const int key = key_begin + 8 * n + AccumulatorColumn(lane, i);
          const float weight = Exp2(fmaf(p[0][n][i], scale_log2, -lse[h]));
          const bool visible = key >= range.x && key <= range.y;
          ds[0][n][i] = visible ? weight * (ds[0][n][i] - delta[h]) : 0.0f;
        }
      }
    }
    AddProduct<kWidth, 1, S::kStreamed>(ds, stage, sums);
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Bf16* to = view.QueryRow(dq, b, row_begin + warp_row + AccumulatorRow(lane, 2 * h));
    if (to == nullptr) continue;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const int column = 8 * n + AccumulatorColumn(lane, 2 * h);
      if (column >= view.width) continue;
      *reinterpret_cast<uint32_t*>(to + column) =
          Pack(sums[0][n][2 * h] * view.scale, sums[0][n][2 * h + 1] * view.scale);
    }
  }
}

// Writes a warp's 16 rows, times `factor`, to rows `first_key` and following of `to`.
template <int kWidth>
__device__ __forceinline__ void StoreSums(const AttentionView<Bf16>& view, const BackwardSums& out,
                                          float* to, int part, int b, int first_key, float factor,
                                          const Accumulators<1, kWidth>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int key = first_key + AccumulatorRow(lane, 2 * h);
    if (key >= view.tokens) continue;
    float* row = out.Row(view, to, part, b, key);
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const int column = 8 * n + AccumulatorColumn(lane, 2 * h);
      if (column >= view.width) continue;
      *reinterpret_cast<float2*>(row + column) =
          make_float2(sums[0][n][2 * h] * factor, sums[0][n][2 * h + 1] * factor);
    }
  }
}

// Sums of dk (kWantDk) and dv (kWantDv) over a part of the query rows. Registers hold both up to
// width 128; at 256 each is a launch of its own.
template <class S, bool kWantDk, bool kWantDv>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttentionBackwardKeysKernel(const AttentionView<Bf16> view, const Bf16* dout,
                                const BackwardInputs in, const BackwardSums out) {
  constexpr int kWidth = S::kWidth;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t keys = SharedAddress(shared), values = keys + S::kHeldBytes;
  const uint32_t stages = keys + S::kStages;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_key = static_cast<int>(threadIdx.x) / 32 * 16;

  // The first keys are seen by the most rows and go first.
  const int b = static_cast<int>(blockIdx.x) % view.sequences;
  const int part = static_cast<int>(blockIdx.x) / view.sequences % out.parts;
  const int key_begin =
      static_cast<int>(blockIdx.x) / view.sequences / out.parts * S::kHeld - view.past;
  const int key_end = min(key_begin + S::kHeld, view.tokens);
  CopyTile<kWidth, S::kHeld, S::kThreads>(keys, view.width, view.q, [&](int r) {
    return view.KeyRow(view.k, view.past_k, b, key_begin + r, key_end);
  });
  if (kWantDk) {
    CopyTile<kWidth, S::kHeld, S::kThreads>(values, view.width, view.q, [&](int r) {
      return view.KeyRow(view.v, view.past_v, b, key_begin + r, key_end);
    });
  }

  const TileRange tiles =
      PartOf(RowTilesSeeing(key_begin, key_end, view.tokens, view.heads, view.window, S::kStreamed),
             part, out.parts);
  const int row_tiles = CeilDiv(view.rows(), S::kStreamed);
  const int2* sights = in.sights + static_cast<int64_t>(b) * row_tiles;
  const auto copy_rows = [&](int tile, int buffer) {
    const int row_begin = tile * S::kStreamed;
    const uint32_t stage = stages + buffer * S::kStage;
    CopyTile<kWidth, S::kStreamed, S::kThreads>(
        stage, view.width, view.q, [&](int r) { return view.QueryRow(view.q, b, row_begin + r); });
    CopyTile<kWidth, S::kStreamed, S::kThreads>(
        stage + S::kStreamedBytes, view.width, view.q,
        [&](int r) { return view.QueryRow(dout, b, row_begin + r); });
    const int r = static_cast<int>(threadIdx.x);
    if (r < S::kStreamed) {
      CopyAsync(stage + S::kRecords + r * sizeof(RowRecord),
                in.records + view.Record(b, row_begin + r), true);
    }
  };

  const float scale_log2 = view.scale * kLog2E;
  Accumulators<1, kWidth> dk, dv;
  if (kWantDk) SetZero<1, kWidth>(dk);
  if (kWantDv) SetZero<1, kWidth>(dv);
  int tile = NextTileSeeing(sights, key_end, tiles.begin, tiles.end);
  if (tile < tiles.end) copy_rows(tile, 0);
  for (int buffer = 0; tile < tiles.end; buffer ^= 1) {
    const int next = NextTileSeeing(sights, key_end, tile + 1, tiles.end);
    const bool masked =
        !SightOfTile<S::kStreamed>(view, sights, tile).SeesAll(key_begin, key_begin + S::kHeld);
    // After the barrier this tile is there, and nobody reads the one before it any more.
    WaitForCopies();
    __syncthreads();
    if (next < tiles.end) copy_rows(next, buffer ^ 1);
    const uint32_t stage = stages + buffer * S::kStage;
    const RowRecord* records =
        reinterpret_cast<const RowRecord*>(shared + S::kStages + buffer * S::kStage + S::kRecords);
    // Transposed: [keys of the warp, streamed rows].
    Accumulators<1, S::kStreamed> p, ds;
    MultiplyTransposed<kWidth, 1, S::kStreamed>(keys + warp_key * kWidth * 2, stage, p);
    if (kWantDk) {
      MultiplyTransposed<kWidth, 1, S::kStreamed>(values + warp_key * kWidth * 2,
                                                  stage + S::kStreamedBytes, ds);
    }
#pragma unroll
    for (int n = 0; n < S::kStreamed / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const RowRecord& row = records[8 * n + AccumulatorColumn(lane, c)];
        const float2 statistics = *reinterpret_cast<const float2*>(&row.lse);  // and delta
        int2 range = make_int2(INT_MIN, INT_MAX);
        if (masked) range = *reinterpret_cast<const int2*>(&row.first);  // and last
#pragma unroll
        for (int i = c; i < 4; i += 2) {
          const int key = key_begin + warp_key + AccumulatorRow(lane, i);
          const bool visible = key >= range.x && key <= range.y;
          p[0][n][i] = visible ? Exp2(fmaf(p[0][n][i], scale_log2, -statistics.x)) : 0.0f;
          if (kWantDk) {
            ds[0][n][i] = visible ? p[0][n][i] * (ds[0][n][i] - statistics.y) : 0.0f;
          }
        }
      }
    }
    if (kWantDv) AddProduct<kWidth, 1, S::kStreamed>(p, stage + S::kStreamedBytes, dv);
    if (kWantDk) AddProduct<kWidth, 1, S::kStreamed>(ds, stage, dk);
    tile = next;
  }
  WaitForCopies();  // of the keys, where no row sees them
  const int first_key = key_begin + warp_key;
  if (kWantDk) StoreSums<kWidth>(view, out, out.dk, part, b, first_key, view.scale, dk);
  if (kWantDv) StoreSums<kWidth>(view, out, out.dv, part, b, first_key, 1.0f, dv);
}

template <int kPadded>
void LaunchBackward(const AttentionView<Bf16>& view, const Bf16* dout, const BackwardInputs& in,
                    Bf16* dq, const BackwardSums& sums) {
  using S = BackwardShape<kPadded>;
  const dim3 block(S::kThreads);
  const auto launch = [&](const char* name, auto kernel, int64_t blocks, auto... arguments) {
    AllowSharedMemory(kernel, S::kShared);
    Launch(name, kernel, dim3(static_cast<unsigned>(blocks)), block, S::kShared, view, dout,
           arguments...);
  };
  const int64_t key_blocks =
      view.sequences * CeilDiv(int64_t{view.past} + view.tokens, S::kHeld) * sums.parts;
  if constexpr (kPadded == 256) {
    launch("attention_backward dk", AttentionBackwardKeysKernel<S, true, false>, key_blocks, in,
           sums);
    launch("attention_backward dv", AttentionBackwardKeysKernel<S, false, true>, key_blocks, in,
           sums);
  } else {
    launch("attention_backward dk dv", AttentionBackwardKeysKernel<S, true, true>, key_blocks, in,
           sums);
  }
  const int64_t row_blocks = view.sequences * CeilDiv(int64_t{view.tokens} * view.heads, S::kHeld);
  launch("attention_backward dq", AttentionBackwardQueriesKernel<S>, row_blocks, in.records, dq);
}

}  // namespace

void AttentionBackwardMma(const AttentionView<Bf16>& view, const Bf16* dout,
                          const BackwardInputs& in, Bf16* dq, const BackwardSums& sums) {
  switch (PaddedWidth(view.width)) {
    case 64: return LaunchBackward<64>(view, dout, in, dq, sums);
    case 128: return LaunchBackward<128>(view, dout, in, dq, sums);
    default: return LaunchBackward<256>(view, dout, in, dq, sums);
  }
}

}  // namespace eyrie
