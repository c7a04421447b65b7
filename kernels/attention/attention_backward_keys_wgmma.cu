// The gradients of attention's keys and values on Hopper's warpgroup products (wgmma.cuh). A block
// holds a tile of keys and their values and streams query rows, all heads in turn, so that nothing
// is left to sum over heads. Products are computed transposed, [keys, rows]:
//
//   dS^T = P^T (V dout^T - delta)      dv += P^T dout      dk += dS^T q
//
// so that P^T and dS^T lie in registers as operand A of the last two. Up to width 128 each of two
// warpgroups has 64 keys. At 256 registers hold one gradient of 64 keys: one warpgroup has that of
// the values, and gives P to the other. While a tile's P is computed, the last product of the tile
// before it runs. A warp of a third warpgroup copies.
#include "kernels/attention/attention_wgmma.cuh"

namespace eyrie {
namespace {

using namespace attention_wgmma;

template <int kPadded>
struct KeysShape {
  static constexpr int kWidth = kPadded, kBoxes = kWidth / kBoxColumns;
  static constexpr bool kShares = kWidth == 256;  // a gradient a warpgroup, not 64 keys
  static constexpr int kKeys = kShares ? 64 : 64 * kConsumers, kRows = kWgmmaStreamedRows;
  static constexpr int kSteps = kRows / 16, kStages = kShares ? 2 : 3;
  static constexpr uint32_t kHeldBox = kKeys * kBoxRow, kHeldBytes = kBoxes * kHeldBox;
  static constexpr uint32_t kRowsBox = kRows * kBoxRow, kRowsBytes = kBoxes * kRowsBox;
  using Held = Ring<1, 2 * kHeldBytes>;
  // Of a stage: rows of q, rows of dout, records.
  static constexpr uint32_t kRecords = 2 * kRowsBytes;
  using Rows = Ring<kStages, kRecords + kRows * sizeof(RowRecord)>;
  // P on its way from one warpgroup to the other, as their threads hold it.
  using Shared = Ring<2, kShares ? kSteps * kWarpgroup * sizeof(uint4) : 0>;
  static constexpr uint32_t kRowsAt = Held::kAllBytes, kSharedAt = kRowsAt + Rows::kAllBytes;
  static constexpr uint32_t kBarriers = kSharedAt + Shared::kAllBytes;
  static constexpr uint32_t kTiles =
      kBarriers + Held::kBarrierBytes + Rows::kBarrierBytes + Shared::kBarrierBytes;
  static constexpr uint32_t kBytes = kTiles + kStages * sizeof(int2) + 1024;  // wherever it starts
};

// What the threads of a block agree on.
template <class S>
struct KeysBlock {
  __device__ KeysBlock(const AttentionView<Bf16>& view, int parts, unsigned char* memory)
      : base((SharedAddress(memory) + 1023) / 1024 * 1024),
        bytes(memory + (base - SharedAddress(memory))),
        held{base, base + S::kBarriers},
        rows{base + S::kRowsAt, held.barriers + S::Held::kBarrierBytes},
        shared{base + S::kSharedAt, rows.barriers + S::Rows::kBarrierBytes},
        b(static_cast<int>(blockIdx.x) % view.sequences),
        part(static_cast<int>(blockIdx.x) / view.sequences % parts) {
    // The first keys are seen by the most rows and go first.
    const int tile = static_cast<int>(blockIdx.x) / view.sequences / parts;
    const SegmentTiles keys{-view.past, view.tokens, S::kKeys};
    key_begin = keys.First(tile);
    key_end = keys.End(tile);
  }
  __device__ void InitBarriers() const {
    held.Init(kConsumerWarps);
    rows.Init(kConsumerWarps);
    for (int i = 0; i < 2; ++i) {
      FreeBarrier::Init(shared.Full(i), kConsumerWarps / kConsumers);
      FreeBarrier::Init(shared.Free(i), kConsumerWarps / kConsumers);
    }
  }
  // The i-th tile of rows: its first row, negative behind the last tile, and whether some of its
  // rows do not see all keys.
  __device__ int2& Tile(int i) const {
    return reinterpret_cast<int2*>(bytes + S::kTiles)[i % S::kStages];
  }
  __device__ RowRecord* Records(int i) const {
    return reinterpret_cast<RowRecord*>(bytes + (rows.Buffer(i) - base) + S::kRecords);
  }
  __device__ uint32_t Queries(int i) const { return rows.Buffer(i); }
  __device__ uint32_t Douts(int i) const { return rows.Buffer(i) + S::kRowsBytes; }
  __device__ uint32_t Keys() const { return held.buffers; }
  __device__ uint32_t Values() const { return held.buffers + S::kHeldBytes; }
  // A thread's 8 weights of a step in the i-th P that goes from one warpgroup to the other.
  __device__ uint4& SharedWeights(int i, int step) const {
    return reinterpret_cast<uint4*>(
        bytes + (shared.Buffer(i) - base))[step * kWarpgroup + threadIdx.x % kWarpgroup];
  }

  uint32_t base;
  unsigned char* bytes;
  typename S::Held held;
  typename S::Rows rows;
  typename S::Shared shared;
  int b, part, key_begin, key_end;
};

// The warp that copies.
template <class S>
__device__ __forceinline__ void Produce(const WgmmaView& view, const BackwardInputs& in, int parts,
                                        const KeysBlock<S>& block) {
  const AttentionView<Bf16>& problem = view.problem;
  const int lane = static_cast<int>(threadIdx.x) % 32, b = block.b;
  if (lane == 0) {
    const uint32_t full = block.held.Full(0);
    FillBarrier::Arm(full, 2 * S::kHeldBytes);
    LoadKeys<S::kBoxes>(block.Keys(), view, view.k, view.past_k, full, S::kKeys, block.key_begin,
                        b);
    LoadKeys<S::kBoxes>(block.Values(), view, view.v, view.past_v, full, S::kKeys, block.key_begin,
                        b);
  }
  const TileRange tiles = PartOf(RowTilesSeeing(block.key_begin, block.key_end, problem.tokens,
                                                problem.heads, problem.window, S::kRows),
                                 block.part, parts);
  const int row_tiles = CeilDiv(problem.rows(), S::kRows);
  const int2* sights = in.sights + static_cast<int64_t>(b) * row_tiles;
  int i = 0;
  for (int tile = tiles.begin;; ++tile, ++i) {
    tile = NextTileSeeing(sights, block.key_end, tile, tiles.end);
    block.rows.WaitUntilFree(i);
    const uint32_t full = block.rows.Full(i);
    if (tile >= tiles.end) {
      if (lane == 0) {
        block.Tile(i) = make_int2(-1, 0);
        FillBarrier::Arm(full, 0);
      }
      return;
    }
    if (lane == 0) {
      // Rows beyond the last one are zeros, and see nothing.
      const int row = tile * S::kRows;
      const Sight sight = SightOfTile<S::kRows>(problem, sights, tile);
      const bool masked =
          row + S::kRows > problem.rows() || !sight.SeesAll(block.key_begin, block.key_end);
      constexpr uint32_t kRecordBytes = S::kRows * sizeof(RowRecord);
      block.Tile(i) = make_int2(row, masked ? 1 : 0);
      FillBarrier::Arm(full, 2 * S::kRowsBytes + kRecordBytes);
      LoadTile<S::kBoxes>(block.Queries(i), view.q, full, S::kRows, row, b);
      LoadTile<S::kBoxes>(block.Douts(i), view.dout, full, S::kRows, row, b);
      LoadBytes(SharedAddress(block.Records(i)), in.records + problem.Record(b, row), kRecordBytes,
                full);
    }
  }
}

// Scores -> probabilities, of keys from first_key on and the rows that `records` describe.
template <int kGroups>
__device__ __forceinline__ void WeighRows(float scale_log2, const RowRecord* records, bool masked,
                                          int first_key, float (&p)[kGroups][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float lse = records[8 * n + AccumulatorColumn(lane, i)].lse;
      p[n][i] = Exp2(fmaf(p[n][i], scale_log2, -lse));
    }
  }
  if (!masked) return;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowRecord& row = records[8 * n + AccumulatorColumn(lane, i)];
      if (!row.Sees(first_key + AccumulatorRow(lane, i))) p[n][i] = 0.0f;
    }
  }
}
// ds = P (ds - delta), and 0 where a key that nobody sees may hold anything.
template <int kGroups>
__device__ __forceinline__ void WeighGradients(const RowRecord* records, bool masked,
                                               const float (&p)[kGroups][4],
                                               float (&ds)[kGroups][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ds[n][i] = p[n][i] * (ds[n][i] - records[8 * n + AccumulatorColumn(lane, i)].delta);
    }
  }
  if (!masked) return;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (p[n][i] == 0.0f) ds[n][i] = 0.0f;
    }
  }
}

template <int kGroups>
__device__ __forceinline__ void SetZero(float (&sums)[kGroups][4]) {
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
  }
}

// Writes a warp's 16 rows, times `factor`, to rows first_key and following of `to`.
template <class S, int kGroups>
__device__ __forceinline__ void StoreSums(const AttentionView<Bf16>& view, const BackwardSums& out,
                                          const KeysBlock<S>& block, float* to, int first_key,
                                          float factor, const float (&sums)[kGroups][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int key = first_key + AccumulatorRow(lane, 2 * h);
    if (key >= block.key_end) continue;
    float* row = out.Row(view, to, block.part, block.b, key);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int column = 8 * n + AccumulatorColumn(lane, 2 * h);
      if (column >= view.width) continue;
      *reinterpret_cast<float2*>(row + column) =
          make_float2(sums[n][2 * h] * factor, sums[n][2 * h + 1] * factor);
    }
  }
}

// A warpgroup that computes both gradients of 64 keys.
template <class S>
__device__ __forceinline__ void ConsumeBoth(const AttentionView<Bf16>& view,
                                            const BackwardSums& out, const KeysBlock<S>& block,
                                            int group) {
  constexpr int kSteps = S::kSteps;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const int first_key = block.key_begin + 64 * group + 16 * warp;
  const uint32_t own_keys = block.Keys() + group * 64 * kBoxRow;
  const uint32_t own_values = block.Values() + group * 64 * kBoxRow;
  const float scale_log2 = view.scale * kLog2E;

  float dk[S::kWidth / 8][4], dv[S::kWidth / 8][4], p[S::kRows / 8][4], ds[S::kRows / 8][4];
  uint32_t p_rows[kSteps][4], ds_rows[kSteps][4];
  SetZero(dk);
  SetZero(dv);
  const auto multiply_keys = [&](int i) {
    WgmmaFence();
    MultiplyRows<S::kWidth / 16>(p, own_keys, S::kHeldBox, block.Queries(i), S::kRowsBox);
  };
  const auto multiply_values = [&](int i) {
    WgmmaFence();
    MultiplyRows<S::kWidth / 16>(ds, own_values, S::kHeldBox, block.Douts(i), S::kRowsBox);
  };
  const auto add_queries = [&](int i) {
    AddTimesRows<kSteps>(dk, ds_rows, block.Queries(i), S::kRowsBox);
  };
  // From P of a tile on to dS, while the sum with P runs.
  const auto add_douts = [&](int i, bool masked) {
    PackRows<kSteps>(p, p_rows);
    WgmmaFence();
    AddTimesRows<kSteps>(dv, p_rows, block.Douts(i), S::kRowsBox);
    WgmmaWait<1>();
    Hold(ds);
    WeighGradients(block.Records(i), masked, p, ds);
    WgmmaWait<0>();
    Hold(p_rows);
    Hold(dv);
    PackRows<kSteps>(ds, ds_rows);
  };

  block.held.WaitUntilFull(0);
  block.rows.WaitUntilFull(0);
  int2 tile = block.Tile(0);
  if (tile.x >= 0) {
    multiply_keys(0);
    multiply_values(0);
    WgmmaWait<1>();
    Hold(p);
    WeighRows(scale_log2, block.Records(0), tile.y != 0, first_key, p);
    add_douts(0, tile.y != 0);
    int i = 1;
    for (;; ++i) {
      block.rows.WaitUntilFull(i);
      tile = block.Tile(i);
      if (tile.x < 0) break;
      multiply_keys(i);
      add_queries(i - 1);
      WgmmaWait<1>();
      Hold(p);
      WeighRows(scale_log2, block.Records(i), tile.y != 0, first_key, p);
      WgmmaWait<0>();
      Hold(ds_rows);
      Hold(dk);
      block.rows.Release(i - 1);
      // Not before: registers are too few for dS of two tiles.
      multiply_values(i);
      add_douts(i, tile.y != 0);
    }
    WgmmaFence();
    add_queries(i - 1);
    WgmmaWait<0>();
    Hold(ds_rows);
    Hold(dk);
  }
  StoreSums(view, out, block, out.dk, first_key, view.scale, dk);
  StoreSums(view, out, block, out.dv, first_key, 1.0f, dv);
}

// A warpgroup that computes one gradient of all keys: of the values, or of the keys themselves.
template <class S, bool kOfValues>
__device__ __forceinline__ void ConsumeOne(const AttentionView<Bf16>& view, const BackwardSums& out,
                                           const KeysBlock<S>& block) {
  constexpr int kSteps = S::kSteps;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const int first_key = block.key_begin + 16 * warp;
  const float scale_log2 = view.scale * kLog2E;

  // weights: P, or dS.
  float sums[S::kWidth / 8][4], weights[S::kRows / 8][4];
  uint32_t packed[kSteps][4];
  SetZero(sums);
  const auto multiply_rows = [&](int i) {
    WgmmaFence();
    MultiplyRows<S::kWidth / 16>(weights, kOfValues ? block.Keys() : block.Values(), S::kHeldBox,
                                 kOfValues ? block.Queries(i) : block.Douts(i), S::kRowsBox);
  };
  const auto add_rows = [&](int i) {
    AddTimesRows<kSteps>(sums, packed, kOfValues ? block.Douts(i) : block.Queries(i), S::kRowsBox);
  };
  const auto wait_for_rows = [&] {
    WgmmaWait<0>();
    Hold(packed);
    Hold(sums);
  };
  const auto weigh = [&](int i, bool masked) {
    if constexpr (kOfValues) {
      WeighRows(scale_log2, block.Records(i), masked, first_key, weights);
    } else {
      float p[S::kRows / 8][4];
      WaitForPhase(block.shared.Full(i), i / 2 % 2);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint4 words = block.SharedWeights(i, step);
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 pair = Unpack(pairs[j]);
          p[2 * step + j / 2][j % 2 * 2] = pair.x;
          p[2 * step + j / 2][j % 2 * 2 + 1] = pair.y;
        }
      }
      block.shared.Release(i);
      WeighGradients(block.Records(i), masked, p, weights);
    }
  };
  const auto pack = [&](int i) {
    PackRows<kSteps>(weights, packed);
    if constexpr (kOfValues) {
      block.shared.WaitUntilFree(i);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        block.SharedWeights(i, step) = {packed[step][0], packed[step][1], packed[step][2],
                                        packed[step][3]};
      }
      FreeBarrier::Arrive(block.shared.Full(i));
    }
  };

  block.held.WaitUntilFull(0);
  block.rows.WaitUntilFull(0);
  int2 tile = block.Tile(0);
  if (tile.x >= 0) {
    multiply_rows(0);
    WgmmaWait<0>();
    Hold(weights);
    weigh(0, tile.y != 0);
    pack(0);
    int i = 1;
    for (;; ++i) {
      block.rows.WaitUntilFull(i);
      tile = block.Tile(i);
      if (tile.x < 0) break;
      multiply_rows(i);
      add_rows(i - 1);
      WgmmaWait<1>();
      Hold(weights);
      weigh(i, tile.y != 0);
      wait_for_rows();
      block.rows.Release(i - 1);
      pack(i);
    }
    WgmmaFence();
    add_rows(i - 1);
    wait_for_rows();
  }
  StoreSums(view, out, block, kOfValues ? out.dv : out.dk, first_key, kOfValues ? 1.0f : view.scale,
            sums);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    AttentionBackwardKeysWgmmaKernel(const __grid_constant__ WgmmaView view,
                                     const BackwardInputs in, const BackwardSums out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  const KeysBlock<S> block(view.problem, out.parts, shared);
  RunRoles<24>(
      block, [&] { Produce(view, in, out.parts, block); },
      [&](int group) {
        if constexpr (!S::kShares) {
          ConsumeBoth(view.problem, out, block, group);
        } else if (group == 0) {
          ConsumeOne<S, true>(view.problem, out, block);
        } else {
          ConsumeOne<S, false>(view.problem, out, block);
        }
      });
#else
  __trap();
#endif
}

template <int kPadded>
void LaunchKeys(const AttentionView<Bf16>& view, const Bf16* dout, const BackwardInputs& in,
                const BackwardSums& sums) {
  using S = KeysShape<kPadded>;
  const auto kernel = AttentionBackwardKeysWgmmaKernel<S>;
  AllowSharedMemory(kernel, S::kBytes);
  const int64_t tiles = SegmentTiles{-view.past, view.tokens, S::kKeys}.count();
  Launch("attention_backward dk dv", kernel,
         dim3(static_cast<unsigned>(view.sequences * tiles * sums.parts)), dim3(kThreads),
         S::kBytes, MapProblem(view, dout, S::kRows, S::kKeys), in, sums);
}

}  // namespace

void AttentionBackwardKeysWgmma(const AttentionView<Bf16>& view, const Bf16* dout,
                                const BackwardInputs& in, const BackwardSums& sums) {
  switch (PaddedWidth(view.width)) {
    case 64: return LaunchKeys<64>(view, dout, in, sums);
    case 128: return LaunchKeys<128>(view, dout, in, sums);
    default: return LaunchKeys<256>(view, dout, in, sums);
  }
}

}  // namespace eyrie
