// A pass of the mLSTM on the tensor cores (mlstm_kernels.cuh). A block takes a head through a chunk
// for 128 of its values, or 64 where keys are more than 256; where they are more than 512, for a
// slice of 256 keys, and the outputs of all slices are added up afterwards. The state stays in
// registers, in float32 and transposed: accumulators of S^T [16 values, 256 keys] of a warp lie as
// operand B of q S needs them. Where two warps share 16 values, each adds its keys' part of half of
// the tokens' outputs. While one of the two products of a tile is computed, what the other needs is
// copied.
#include "core/round.h"
#include "kernels/mlstm/mlstm_state.cuh"
#include "kernels/mma.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kTile = kMlstmTile, kSteps = kTile / 16;
constexpr int kWarps = kMlstmPassWarps, kThreads = kMlstmPassThreads;

template <int kPaddedKeys, bool kOfSlices = false>
struct PassShape {
  static constexpr bool kSliced = kOfSlices;
  static constexpr int kKeys = kPaddedKeys, kValues = MlstmBlockOf(true, kKeys).values;
  static constexpr int kValueWarps = kValues / 16, kKeyWarps = kWarps / kValueWarps;
  static constexpr int kWarpKeys = kKeys / kKeyWarps;
  static constexpr uint32_t kKeyBytes = kTile * kKeys * 2, kValueBytes = kTile * kValues * 2;
  static constexpr uint32_t kScoreBytes = kTile * kTile * 2;
  static constexpr uint32_t kVectorBytes = kVectors * kTile * sizeof(float);
  // q; k; two buffers of v, scores and vectors. Where two warps share values, outputs on their way
  // between these lie in the other buffer, over v and scores.
  static constexpr uint32_t kStage = kValueBytes + kScoreBytes + kVectorBytes;
  static constexpr uint32_t kStages = 2 * kKeyBytes;
  static_assert(kKeyWarps == 1 || kWarps * 16 * 32 * sizeof(float) <= kValueBytes + kScoreBytes);
  // What the outputs are multiplied with, if anything, where an A100 has room for it.
  static constexpr uint32_t kMultiplied = kStages + 2 * kStage;
  static constexpr bool kCopiesMultiplied = kKeyWarps == 1;
  static constexpr uint32_t Shared(bool multiplied) {
    return kMultiplied + (multiplied && kCopiesMultiplied ? kValueBytes : 0);
  }
  static_assert(Shared(true) <= kA100SharedMemory);
};

// A warp's outputs of 16 tokens, [16 tokens, 16 values].
using Outputs = float[2][4];

template <class S, bool kReverse>
__global__ void __launch_bounds__(kThreads, 1)
    MlstmPassKernel(const MlstmLayout sizes, const MlstmPass<Bf16> pass) {
  constexpr int kKeys = S::kKeys, kValues = S::kValues, kWarpKeys = S::kWarpKeys;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t base = SharedAddress(shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int value_warp = warp % S::kValueWarps, key_warp = warp / S::kValueWarps;
  const int head = static_cast<int>(blockIdx.x), chunk = static_cast<int>(blockIdx.y);
  const int value_blocks = CeilDiv(pass.values, kValues);
  const int slice = S::kSliced ? static_cast<int>(blockIdx.z) / value_blocks : 0;
  const int key_begin = slice * kKeys, keys = min(kKeys, pass.keys - key_begin);
  const int value_begin = (static_cast<int>(blockIdx.z) - slice * value_blocks) * kValues;
  const int values = min(kValues, pass.values - value_begin);
  const int first_tile = chunk * sizes.chunk_tiles;
  const int tiles = min(sizes.chunk_tiles, sizes.tiles - first_tile);
  // The first slice has what does not depend on keys in memory: the further key and the scores.
  const bool outputs = pass.o != nullptr, extra = pass.extra_seen != nullptr && slice == 0;
  const bool leaves = StateLeaves(sizes, pass, kReverse ? first_tile : first_tile + tiles);

  // The tile that the pass comes to as the i-th.
  const auto tile_at = [&](int i) { return first_tile + (kReverse ? tiles - 1 - i : i); };
  const auto stage_of = [&](int i) { return S::kStages + (i % 2) * S::kStage; };
  // Where there are no outputs, k has the place of q as a second buffer.
  const auto keys_of = [&](int i) { return base + (outputs || i % 2 == 0 ? S::kKeyBytes : 0); };
  const auto row = [&](const Bf16* from, int width, int token) {
    return token < sizes.tokens ? from + sizes.Row(head, token) * width : nullptr;
  };
  const auto copy_keys = [&](int i) {
    const int begin = tile_at(i) * kTile;
    CopyTile<kKeys, kTile, kThreads>(keys_of(i), keys, pass.k, [&](int r) {
      return row(pass.k + key_begin, pass.keys, begin + r);
    });
  };
  const auto copy_others = [&](int i) {
    const int tile = tile_at(i), begin = tile * kTile;
    const uint32_t stage = base + stage_of(i);
    CopyTile<kValues, kTile, kThreads>(stage, values, pass.v, [&](int r) {
      return row(pass.v + value_begin, pass.values, begin + r);
    });
    if (outputs) {
      CopyTile<kKeys, kTile, kThreads>(
          base, keys, pass.q, [&](int r) { return row(pass.q + key_begin, pass.keys, begin + r); });
      const Bf16* scores =
          pass.scores + (static_cast<int64_t>(head) * sizes.tiles + tile) * kTile * kTile;
      CopyTile<kTile, kTile, kThreads>(stage + S::kValueBytes, kTile, pass.v,
                                       [&](int r) { return scores + r * kTile; });
      if (S::kCopiesMultiplied && !S::kSliced && pass.multiplied != nullptr) {
        CopyTile<kValues, kTile, kThreads>(
            base + S::kMultiplied, values, pass.multiplied,
            [&](int r) { return row(pass.multiplied + value_begin, pass.values, begin + r); });
      }
    }
    const int vector = thread / 16, part = thread % 16 * 4;
    const float* const vectors[kVectors] = {pass.sees, pass.seen, pass.factor, pass.extra_sees,
                                            pass.extra_seen};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (vector != j || vectors[j] == nullptr) continue;
      CopyAsync(stage + S::kValueBytes + S::kScoreBytes + (j * kTile + part) * sizeof(float),
                vectors[j] + head * sizes.padded() + begin + part, true);
    }
  };

  copy_others(0);
  copy_keys(0);
  const MlstmStatePart part{key_begin + key_warp * kWarpKeys, value_begin, 16 * value_warp, values,
                            static_cast<int64_t>(head) * sizes.chunks + chunk};
  const MlstmShare share{head, static_cast<int>(blockIdx.z), static_cast<int>(gridDim.z),
                         key_warp == 0 && lane % 4 == 0};
  float state[kWarpKeys / 8][4], extra_state[2];
  EnterChunk(pass, part, extra, state, extra_state);

  const LaneChunk in_a = LaneOfA(lane);
  const uint32_t key_lane = ChunkOffset<kKeys>(in_a.row, in_a.chunk) + key_warp * kWarpKeys * 2;
  const uint32_t value_lane = ChunkOffset<kValues>(in_a.row, in_a.chunk);
  const uint32_t multiplied_lane = S::kMultiplied + ChunkOffset<kValues>(lane / 4, 2 * value_warp) +
                                   AccumulatorColumn(lane, 0) * 2;
  const uint32_t score_lane = ChunkOffset<kTile>(in_a.row, in_a.chunk);
  for (int index = 0; index < tiles; ++index) {
    const int tile = tile_at(index), begin = tile * kTile;
    const uint32_t values_at = base + stage_of(index), scores = values_at + S::kValueBytes;
    const float* vectors =
        reinterpret_cast<const float*>(shared + stage_of(index) + S::kValueBytes + S::kScoreBytes);
    const bool updates = leaves || index + 1 < tiles;
    AtRestart(sizes, pass, kReverse ? tile + 1 : tile, share, state, extra_state);
    const float decay = expf(pass.log_decay[static_cast<int64_t>(head) * sizes.tiles + tile]);
    // The warp's values: tokens are the inner index of two operands B, and of one operand A with
    // its middle registers exchanged.
    uint32_t value_rows[kSteps][4];
    const auto load_values = [&] {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        LoadMatricesTransposed(value_rows[step], StepRight(values_at + value_lane, value_warp) +
                                                     step * 16 * kValues * 2);
      }
    };

    if (outputs) {
      // After the barrier q, v and the scores are there, and nobody reads the keys before.
      WaitForCopies();
      __syncthreads();
      if (index > 0 && updates) copy_keys(index);
      Outputs o[kSteps] = {};
#pragma unroll
      for (int step = 0; step < kWarpKeys / 16; ++step) {
        uint32_t right[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&pair)[4] = state[2 * step + i % 2];
          right[i] = Pack(pair[i / 2 * 2], pair[i / 2 * 2 + 1]);
        }
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          uint32_t left[4];
          LoadMatrices(left, StepRight(base + key_lane, step) + m * 16 * kKeys * 2);
          Mma(o[m][0], left, right[0], right[1]);
          Mma(o[m][1], left, right[2], right[3]);
        }
      }
      load_values();
      // Of the columns that this lane has of the outputs, of value 8 j + AccumulatorColumn(lane,
      // i).
      float extra_columns[2][2] = {};
      if (extra) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            extra_columns[j][i] =
                __shfl_sync(0xffffffffu, extra_state[j], 4 * AccumulatorColumn(lane, i));
          }
        }
      }
      // The products of 16 tokens' outputs of the warp with the rows that these are multiplied
      // with.
      const auto multiply = [&](int m, const Outputs& sums) {
        const int slot = value_begin / 16 + value_warp;
        const int64_t slots = pass.values / 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int token = 16 * m + AccumulatorRow(lane, 2 * half);
          float product = 0.0f;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            uint32_t pair = 0;
            if constexpr (S::kCopiesMultiplied) {
              // The next chunk of a row lies beside it, as rows are swizzled by whole chunks.
              const uint32_t at = (multiplied_lane ^ (16u * j)) + (16 * m + 8 * half) * kValues * 2;
              pair = *reinterpret_cast<const uint32_t*>(shared + at);
            } else {
              const int value = 16 * value_warp + 8 * j + AccumulatorColumn(lane, 0);
              const Bf16* from = row(pass.multiplied + value_begin, pass.values, begin + token);
              if (from != nullptr && value < values) {
                pair = *reinterpret_cast<const uint32_t*>(from + value);
              }
            }
            const float2 factors = Unpack(pair);
            product = fmaf(sums[j][2 * half], factors.x, product);
            product = fmaf(sums[j][2 * half + 1], factors.y, product);
          }
          product = QuadSum(product);
          if (lane % 4 == 0 && slot < slots) {
            pass.products[(head * slots + slot) * sizes.padded() + begin + token] = product;
          }
        }
      };
      // Weighs the state's part of 16 tokens' outputs, adds that of the tile, stores them.
      const auto finish = [&](int m, Outputs& sums) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = 16 * m + AccumulatorRow(lane, i);
          const float weight = vectors[kSees * kTile + token];
          const float extra_weight = extra ? vectors[kExtraSees * kTile + token] : 0.0f;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            sums[j][i] = fmaf(sums[j][i], weight, extra_weight * extra_columns[j][i % 2]);
          }
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          if ((kReverse ? step < m : step > m) || slice > 0) continue;
          uint32_t left[4];
          if constexpr (kReverse) {
            uint32_t rows[4];
            LoadMatricesTransposed(rows, StepRight(scores + score_lane, m) + step * 16 * kTile * 2);
            left[0] = rows[0];
            left[1] = rows[2];
            left[2] = rows[1];
            left[3] = rows[3];
          } else {
            LoadMatrices(left, StepRight(scores + score_lane, step) + m * 16 * kTile * 2);
          }
          Mma(sums[0], left, value_rows[step][0], value_rows[step][1]);
          Mma(sums[1], left, value_rows[step][2], value_rows[step][3]);
        }
        if (!S::kSliced && pass.multiplied != nullptr) multiply(m, sums);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int token = 16 * m + AccumulatorRow(lane, 2 * half);
          if (begin + token >= sizes.tokens) continue;
          const float factor = pass.factor == nullptr ? 1.0f : vectors[kFactor * kTile + token];
          const int64_t at = sizes.Row(head, begin + token) * pass.values + value_begin;
          Bf16* to = pass.o + at;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int value = 16 * value_warp + 8 * j + AccumulatorColumn(lane, 0);
            if (value >= values) continue;
            if constexpr (S::kSliced) {
              const int64_t all = int64_t{sizes.sequences} * sizes.tokens * sizes.heads;
              *reinterpret_cast<float2*>(pass.partial + slice * all * pass.values + at + value) =
                  make_float2(sums[j][2 * half], sums[j][2 * half + 1]);
              continue;
            }
            *reinterpret_cast<uint32_t*>(to + value) =
                Pack(sums[j][2 * half] * factor, sums[j][2 * half + 1] * factor);
          }
        }
      };
      if constexpr (S::kKeyWarps == 1) {
#pragma unroll
        for (int m = 0; m < kSteps; ++m) finish(m, o[m]);
      } else {
        static_assert(S::kKeyWarps == 2);
        // The first warp finishes the first half of the tokens, its partner the second one. The
        // other stage's tile has been read, and the next one is not yet on its way.
        float* exchange = reinterpret_cast<float*>(shared + stage_of(index + 1));
        const auto slot = [&](int of_warp, int i) -> float& {
          return exchange[(of_warp * 16 + i) * 32 + lane];
        };
        WithConstant(key_warp == 0, [&](auto first) {
          constexpr int kGiven = decltype(first)::value ? kSteps / 2 : 0;
#pragma unroll
          for (int i = 0; i < 16; ++i) slot(warp, i) = o[kGiven + i / 8][i / 4 % 2][i % 4];
        });
        __syncthreads();
        WithConstant(key_warp == 0, [&](auto first) {
          constexpr int kKept = decltype(first)::value ? 0 : kSteps / 2;
          const int partner = (warp + S::kValueWarps) % kWarps;
#pragma unroll
          for (int i = 0; i < 16; ++i) o[kKept + i / 8][i / 4 % 2][i % 4] += slot(partner, i);
#pragma unroll
          for (int m = kKept; m < kKept + kSteps / 2; ++m) finish(m, o[m]);
        });
      }
    }

    if (!updates) break;
    // After the barrier k (and without outputs v) is there, and nobody reads q.
    WaitForCopies();
    __syncthreads();
    if (index + 1 < tiles) {
      copy_others(index + 1);
      if (!outputs) copy_keys(index + 1);
    }
    load_values();
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] *= decay;
    }
    float extra_sums[2] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int token = 16 * step + AccumulatorColumn(lane, 0);
      const auto pair_of = [&](int vector, int at) {
        return *reinterpret_cast<const float2*>(vectors + vector * kTile + at);
      };
      if (extra) {
        const float2 low = pair_of(kExtraSeen, token), high = pair_of(kExtraSeen, token + 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 early = Unpack(value_rows[step][2 * i]),
                       late = Unpack(value_rows[step][2 * i + 1]);
          extra_sums[i] += early.x * low.x + early.y * low.y + late.x * high.x + late.y * high.y;
        }
      }
      const float2 low = pair_of(kSeen, token), high = pair_of(kSeen, token + 8);
      const uint32_t left[4] = {Scale(value_rows[step][0], low), Scale(value_rows[step][2], low),
                                Scale(value_rows[step][1], high), Scale(value_rows[step][3], high)};
#pragma unroll
      for (int i = 0; i < kWarpKeys / 16; ++i) {
        uint32_t right[4];
        LoadMatricesTransposed(right,
                               StepRight(keys_of(index) + key_lane, i) + step * 16 * kKeys * 2);
        Mma(state[2 * i], left, right[0], right[1]);
        Mma(state[2 * i + 1], left, right[2], right[3]);
      }
    }
    if (extra) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        extra_state[i] = fmaf(decay, extra_state[i], QuadSum(extra_sums[i]));
      }
    }
  }
  if (leaves) {
    AtRestart(sizes, pass, kReverse ? first_tile : first_tile + tiles, share, state, extra_state);
  }
  LeaveChunk(pass, part, extra && share.extra_counts, state, extra_state);
}

template <class S>
void LaunchPass(const MlstmLayout& sizes, const MlstmPass<Bf16>& pass) {
  const MlstmBlock block = MlstmBlockOf(true, pass.keys);
  const int64_t blocks = block.count(pass.keys, pass.values);
  const dim3 grid(static_cast<unsigned>(sizes.all_heads()), static_cast<unsigned>(sizes.chunks),
                  static_cast<unsigned>(blocks));
  const uint32_t shared = S::Shared(!S::kSliced && pass.multiplied != nullptr);
  const auto launch = [&](auto kernel) {
    AllowSharedMemory(kernel, S::Shared(true));
    Launch("mlstm pass", kernel, grid, dim3(kThreads), shared, sizes, pass);
  };
  pass.reverse ? launch(MlstmPassKernel<S, true>) : launch(MlstmPassKernel<S, false>);
  if (S::kSliced && pass.o != nullptr) {
    SumSlices(sizes, pass, static_cast<int>(block.slices(pass.keys)));
  }
}

}  // namespace

int MlstmProductSlices(const MlstmPass<Bf16>& pass) {
  return pass.keys <= kMaxMlstmBlockKeys || MlstmFitsWgmma(pass) ? pass.values / 16 : 1;
}

void MlstmPassMma(const MlstmLayout& sizes, const MlstmPass<Bf16>& pass) {
  if (pass.keys <= 64) {
    LaunchPass<PassShape<64>>(sizes, pass);
  } else if (pass.keys <= 128) {
    LaunchPass<PassShape<128>>(sizes, pass);
  } else if (pass.keys <= 256) {
    LaunchPass<PassShape<256>>(sizes, pass);
  } else if (pass.keys <= kMaxMlstmBlockKeys) {
    LaunchPass<PassShape<kMaxMlstmBlockKeys>>(sizes, pass);
  } else {
    LaunchPass<PassShape<256, true>>(sizes, pass);
  }
}

}  // namespace eyrie
