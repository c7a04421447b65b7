// Chunks of lightning attention on the tensor cores. A block takes a head through a chunk, tile by
// tile of 64 tokens, for up to 128 of its values; a warp has 16 of these. The state stays in
// registers, in float32 and transposed: accumulators of S^T [16 values, keys] lie as operand B of
// q S needs them. The scores of a tile are computed by all warps together and shared.
#include "core/round.h"
#include "kernels/lightning_attention/lightning_kernels.cuh"
#include "kernels/mma.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kTile = kLightningTile, kSteps = kTile / 16;

template <int kPaddedKeys, int kPaddedValues>
struct MmaShape {
  static constexpr int kKeys = kPaddedKeys, kValues = kPaddedValues;
  static constexpr int kWarps = kValues / 16, kThreads = 32 * kWarps;
  // Columns of the scores that a warp computes for its 16 rows.
  static constexpr int kColumns = kTile / (kWarps / kSteps);
  static constexpr uint32_t kKeyBytes = kTile * kKeys * 2, kValueBytes = kTile * kValues * 2;
  // Two buffers of q, k and v; scores; documents; weights.
  static constexpr uint32_t kStage = 2 * kKeyBytes + kValueBytes, kScores = 2 * kStage;
  static constexpr uint32_t kDocuments = kScores + kTile * kTile * 2;
  static constexpr uint32_t kWeights = kDocuments + 2 * kTile * sizeof(int);
  static constexpr uint32_t kShared = kWeights + 2 * kTile * sizeof(float);
};

// A warp's share of the transposed state, [16 values, kKeys].
template <int kKeys>
using State = float[kKeys / 8][4];

// Writes the warp's part of the tile's decayed and masked scores q k^T, in bfloat16. `documents`
// are those of the tile. Parts above the diagonal are left as they are: nobody reads them.
template <class S>
__device__ __forceinline__ void Scores(uint32_t q, uint32_t k, const int* documents,
                                       float log2_decay, unsigned char* scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = warp % kSteps * 16, first_column = warp / kSteps * S::kColumns;
  if (first_column > first_row + 15) return;
  Accumulators<1, S::kColumns> sums;
  MultiplyTransposed<S::kKeys, 1, S::kColumns>(q + first_row * S::kKeys * 2,
                                               k + first_column * S::kKeys * 2, sums);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + AccumulatorRow(lane, 2 * half), document = documents[row];
#pragma unroll
    for (int n = 0; n < S::kColumns / 8; ++n) {
      const int column = first_column + 8 * n + AccumulatorColumn(lane, 0);
      float pair[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool sees = column + i <= row && documents[column + i] == document;
        const float decay = Exp2(log2_decay * static_cast<float>(row - column - i));
        pair[i] = sees ? sums[0][n][2 * half + i] * decay : 0.0f;
      }
      *reinterpret_cast<uint32_t*>(scores + ChunkOffset<kTile>(row, column / 8) + column % 8 * 2) =
          Pack(pair[0], pair[1]);
    }
  }
}

template <class S, bool kOutputs>
__global__ void __launch_bounds__(S::kThreads) LightningMmaKernel(const LightningView<Bf16> view) {
  constexpr int kKeys = S::kKeys, kValues = S::kValues;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t stages = SharedAddress(shared), scores = stages + S::kScores;
  int* all_documents = reinterpret_cast<int*>(shared + S::kDocuments);
  // Of the state before in each token's output, of each token in the state after.
  float* sees = reinterpret_cast<float*>(shared + S::kWeights);
  float* seen = sees + kTile;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int head = static_cast<int>(blockIdx.x), b = head / view.heads, h = head % view.heads;
  const int chunk = static_cast<int>(blockIdx.y);
  const int value_begin = static_cast<int>(blockIdx.z) * kValues;
  const int values = min(kValues, view.values - value_begin);
  const int begin = chunk * view.chunk, end = min(view.tokens, begin + view.chunk);
  const float log2_decay = -view.rate[h] * kLog2E;

  const auto copy_tile = [&](int tile) {
    const int first = begin + tile * kTile;
    const uint32_t stage = stages + (tile % 2) * S::kStage;
    const auto row = [&](const Bf16* from, int width, int r) {
      return first + r < end ? from + view.Row(b, view.Token(first + r), h, width) : nullptr;
    };
    if constexpr (kOutputs) {
      CopyTile<kKeys, kTile, S::kThreads>(stage, view.keys, view.k,
                                          [&](int r) { return row(view.q, view.keys, r); });
    }
    CopyTile<kKeys, kTile, S::kThreads>(stage + S::kKeyBytes, view.keys, view.k,
                                        [&](int r) { return row(view.k, view.keys, r); });
    CopyTile<kValues, kTile, S::kThreads>(stage + 2 * S::kKeyBytes, values, view.k, [&](int r) {
      return row(view.v + value_begin, view.values, r);
    });
    if (thread < kTile) {
      all_documents[tile % 2 * kTile + thread] =
          first + thread < end ? view.Document(b, view.Token(first + thread)) : INT_MIN;
    }
  };
  // Calls body(element of the state, where it lies in memory) for those that exist.
  State<kKeys> state;
  const auto for_state = [&](const auto& body) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = 8 * n + AccumulatorColumn(lane, i);
        const int value = 16 * warp + AccumulatorRow(lane, i);
        if (key >= view.keys || value >= values) continue;
        body(state[n][i], key * view.key_stride + (value_begin + value) * view.value_stride);
      }
    }
  };

  copy_tile(0);
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) state[n][i] = 0.0f;
  }
  if (view.entering != nullptr) {
    const float* from = view.entering + view.State(head, chunk);
    for_state([&](float& element, int at) { element = from[at]; });
  }

  const LaneChunk in_a = LaneOfA(lane);
  const uint32_t key_lane = ChunkOffset<kKeys>(in_a.row, in_a.chunk);
  const uint32_t value_lane = ChunkOffset<kValues>(in_a.row, in_a.chunk);
  const uint32_t score_lane = scores + ChunkOffset<kTile>(in_a.row, in_a.chunk);
  const int tiles = CeilDiv(end - begin, kTile);
  for (int tile = 0; tile < tiles; ++tile) {
    // After the barrier this tile is there, and nobody reads the one before it any more.
    WaitForCopies();
    __syncthreads();
    if (tile + 1 < tiles) copy_tile(tile + 1);
    const int first = begin + tile * kTile, n = min(kTile, end - first);
    const uint32_t q = stages + (tile % 2) * S::kStage, k = q + S::kKeyBytes, v = k + S::kKeyBytes;
    const int* documents = all_documents + tile % 2 * kTile;

    const int early = view.reverse ? n - 1 : 0, late = view.reverse ? 1 : 0;
    const bool back = ReachesBack(view.Token(first + early), documents[early]);
    const bool crosses = back && documents[0] == documents[n - 1];
    if (thread < kTile) {
      const int document = documents[thread];
      const bool before = thread < n && document == documents[0] && (view.reverse || back);
      const bool after = thread < n && document == documents[n - 1] && (!view.reverse || back);
      const int since = thread + 1 - late, until = n - 1 - thread + late;
      sees[thread] = before ? Exp2(log2_decay * static_cast<float>(since)) : 0.0f;
      seen[thread] = after ? Exp2(log2_decay * static_cast<float>(until)) : 0.0f;
    }
    if constexpr (kOutputs) Scores<S>(q, k, documents, log2_decay, shared + S::kScores);
    __syncthreads();

    // The warp's values: tokens are the inner index of two operands B, and of one operand A with
    // its middle registers exchanged.
    uint32_t value_rows[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      LoadMatricesTransposed(value_rows[step],
                             StepRight(v + value_lane, warp) + step * 16 * kValues * 2);
    }
    if constexpr (kOutputs) {
      Accumulators<kSteps, 16> o;
      SetZero<kSteps, 16>(o);
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
        uint32_t right[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&pair)[4] = state[2 * step + i % 2];
          right[i] = Pack(pair[i / 2 * 2], pair[i / 2 * 2 + 1]);
        }
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          uint32_t left[4];
          LoadMatrices(left, StepRight(q + key_lane, step) + m * 16 * kKeys * 2);
          Mma(o[m][0], left, right[0], right[1]);
          Mma(o[m][1], left, right[2], right[3]);
        }
      }
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float weight = sees[16 * m + AccumulatorRow(lane, i)];
          o[m][0][i] *= weight;
          o[m][1][i] *= weight;
        }
#pragma unroll
        for (int step = 0; step <= m; ++step) {
          uint32_t left[4];
          LoadMatrices(left, StepRight(score_lane, step) + m * 16 * kTile * 2);
          Mma(o[m][0], left, value_rows[step][0], value_rows[step][1]);
          Mma(o[m][1], left, value_rows[step][2], value_rows[step][3]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * m + AccumulatorRow(lane, 2 * half);
          if (row >= n) continue;
          Bf16* to = view.o + view.Row(b, view.Token(first + row), h, view.values) + value_begin;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int value = 16 * warp + 8 * j + AccumulatorColumn(lane, 0);
            if (value >= values) continue;
            *reinterpret_cast<uint32_t*>(to + value) =
                Pack(o[m][j][2 * half], o[m][j][2 * half + 1]);
          }
        }
      }
    }

    if (view.leaving == nullptr && tile + 1 == tiles) break;
    const float decay = crosses ? Exp2(log2_decay * static_cast<float>(n)) : 0.0f;
#pragma unroll
    for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) state[i][j] *= decay;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int token = 16 * step + 2 * (lane % 4);
      const float2 low = make_float2(seen[token], seen[token + 1]);
      const float2 high = make_float2(seen[token + 8], seen[token + 9]);
      const uint32_t left[4] = {Scale(value_rows[step][0], low), Scale(value_rows[step][2], low),
                                Scale(value_rows[step][1], high), Scale(value_rows[step][3], high)};
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        uint32_t right[4];
        LoadMatricesTransposed(right, StepRight(k + key_lane, i) + step * 16 * kKeys * 2);
        Mma(state[2 * i], left, right[0], right[1]);
        Mma(state[2 * i + 1], left, right[2], right[3]);
      }
    }
  }
  if (view.leaving != nullptr) {
    float* to = view.leaving + view.State(head, chunk);
    for_state([&](float element, int at) { to[at] = element; });
  }
}

template <int kKeys, int kValues>
void LaunchChunks(const LightningView<Bf16>& view, int sequences) {
  using S = MmaShape<kKeys, kValues>;
  const dim3 grid(static_cast<unsigned>(sequences * view.heads), static_cast<unsigned>(view.chunks),
                  Pieces(view.values, kValues));
  const auto launch = [&](auto kernel) {
    AllowSharedMemory(kernel, S::kShared);
    Launch("lightning_attention", kernel, grid, dim3(S::kThreads), S::kShared, view);
  };
  view.o != nullptr ? launch(LightningMmaKernel<S, true>) : launch(LightningMmaKernel<S, false>);
}

template <int kKeys>
void LaunchKeys(const LightningView<Bf16>& view, int sequences) {
  // An A100 has no room for 256 keys beside 128 values.
  const bool fits = MmaShape<kKeys, 128>::kShared <= MostSharedMemory();
  view.values <= 64 || !fits ? LaunchChunks<kKeys, 64>(view, sequences)
                             : LaunchChunks<kKeys, 128>(view, sequences);
}

}  // namespace

void LightningChunksMma(const LightningView<Bf16>& view, int sequences) {
  switch (PaddedWidth(view.keys)) {
    case 64: return LaunchKeys<64>(view, sequences);
    case 128: return LaunchKeys<128>(view, sequences);
    default: return LaunchKeys<256>(view, sequences);
  }
}

}  // namespace eyrie
