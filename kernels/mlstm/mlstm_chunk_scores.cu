// The scores within the mLSTM's chunks (mlstm_chunks.h). A cluster computes those of 256 tokens of
// a chunk, a block 128 of them, with 256 that are not later ones: of a whole chunk these are three
// parts, of which the two on the diagonal have more than is seen. Scores across tiles take the ways
// that states take: what a token sees of the state before its tile, what the tiles between let
// pass, what an earlier token adds to the state after its tile.
#include "kernels/mlstm/mlstm_chunks.cuh"

namespace eyrie {
namespace {

using namespace mlstm_chunks;

static_assert(kRightBoxes == kClusterTiles);

struct View {
  MlstmLayout sizes;
  MlstmVectors vectors;
  MlstmChunkScores args;
  CUtensorMap q, k, v, dh, w, p;
};

// Parts of a chunk: earlier half with itself, and of two halves the later one with both.
__host__ __device__ int Parts(const MlstmLayout& sizes) {
  return ClustersDown(sizes.chunk_tiles) == 1 ? 1 : 3;
}

// What a cluster does at a time: a part of W, or of P, of a chunk; those that read the same one
// after the other. Without steps there are no such tokens.
struct Unit {
  bool of_p;
  int head, chunk, first_tile, inner_steps;
  int row_tile, column_tile;  // the first ones, in the chunk

  __device__ Unit(const View& view, int unit) {
    const MlstmLayout& sizes = view.sizes;
    const int kinds = view.args.dh == nullptr ? 1 : 2, parts = Parts(sizes), part = unit % parts;
    row_tile = part == 0 ? 0 : kClusterTiles;
    column_tile = part == 2 ? kClusterTiles : 0;
    of_p = unit / parts % kinds != 0;
    head = unit / parts / kinds / sizes.chunks;
    chunk = unit / parts / kinds % sizes.chunks;
    first_tile = chunk * sizes.chunk_tiles;
    const bool exists = first_tile + row_tile < sizes.tiles;
    inner_steps = exists ? ((of_p ? sizes.values : sizes.keys) + 63) / 64 : 0;
  }
};
__host__ __device__ int64_t Units(const View& view) {
  return int64_t{view.sizes.all_heads()} * view.sizes.chunks * Parts(view.sizes) *
         (view.args.dh == nullptr ? 1 : 2);
}

[[maybe_unused]] __device__ __forceinline__ void Produce(const View& view, const Block& block) {
  const MlstmLayout& sizes = view.sizes;
  const int units = static_cast<int>(Units(view));
  int step = 0;
  for (int i = block.cluster; i < units; i += block.clusters) {
    const Unit unit(view, i);
    const int in_sequence = unit.head % sizes.heads, sequence = unit.head / sizes.heads;
    const CUtensorMap& rows = unit.of_p ? view.dh : view.q;
    const CUtensorMap& columns = unit.of_p ? view.v : view.k;
    for (int s = 0; s < unit.inner_steps; ++s, ++step) {
      block.Fill(
          step, 0,
          [&](int j, const auto& load) {
            const int tile = unit.first_tile + unit.row_tile + kLeftBoxes * block.row + j;
            load(rows, 64 * s, in_sequence, tile * kTile, sequence);
          },
          [&](int j, const auto& load) {
            const int tile = unit.first_tile + unit.column_tile + j;
            load(columns, 64 * s, in_sequence, tile * kTile, sequence);
          });
    }
  }
}

[[maybe_unused]] __device__ __forceinline__ void Consume(const View& view, const Block& block,
                                                         int group) {
  const MlstmLayout& sizes = view.sizes;
  const MlstmVectors& vectors = view.vectors;
  const bool backward = view.args.dh != nullptr;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  unsigned char* staged = block.memory + (block.Staged(group) - block.base);
  const int own_row = 16 * (thread / 32) + lane / 4;  // in the tile; and 8 further
  const int units = static_cast<int>(Units(view));
  const float scale = rsqrtf(static_cast<float>(sizes.keys));
  int step = 0;
  for (int u = block.cluster; u < units; u += block.clusters) {
    const Unit unit(view, u);
    if (unit.inner_steps == 0) continue;
    const ChunkTiles tiles(sizes, unit.head, unit.chunk, vectors.log_decay);
    const int own_tile = unit.row_tile + kLeftBoxes * block.row + group;
    const bool exists = own_tile < tiles.count;
    const int first_token = tiles.first * kTile;
    const int64_t vector_at = unit.head * sizes.padded() + first_token;
    const auto document_of = [&](int token) {
      return token < sizes.tokens ? sizes.Document(unit.head, token) : -2;
    };
    // Of the lane's two tokens, while the products go on.
    float row[2] = {}, before[2] = {}, inverse_b[2] = {1.0f, 1.0f};
    // What the normaliser's gradient adds to a product before it is weighed, and after.
    float dnormaliser[2] = {}, before_normaliser[2] = {};
    int document[2] = {};
    bool valid[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = own_tile * kTile + own_row + 8 * half;
      const int64_t at = vector_at + r;
      valid[half] = exists && first_token + r < sizes.tokens;
      if (!exists) continue;
      document[half] = document_of(first_token + r);
      row[half] = vectors.row[at];
      before[half] = vectors.before[at];
      if (unit.of_p) before_normaliser[half] = vectors.before_normaliser[at];
      if (!valid[half] || !backward) continue;
      inverse_b[half] = vectors.inverse_b[at];
      if (unit.of_p) dnormaliser[half] = vectors.dnormaliser[at];
    }
    float sums[kMlstmChunkColumns / 8][4];
    for (int s = 0; s < unit.inner_steps; ++s, ++step) {
      const uint32_t left = block.Stage(step) + group * kBoxBytes;
      const uint32_t right = block.Stage(step) + kRight;
      block.WaitForStage(step);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        Wgmma<false, false>(sums, RowsDescriptor<128>(left, i), RowsDescriptor<128>(right, i),
                            s > 0 || i > 0);
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (s > 0) block.Release(step - 1);
    }
    WgmmaWait<0>();
    Hold(sums);
    block.Release(step - 1);
    if (!exists) continue;

    block.AwaitStaged(group);
    float row_sums[2] = {};
#pragma unroll
    for (int box = 0; box < kRightBoxes; ++box) {
      const int tile = unit.column_tile + box;
      if (tile > own_tile) continue;
      const float passed = tiles.Decay(tile + 1, own_tile);
      WithConstant(tile == own_tile, [&](auto own) {
        const float* const in_column = decltype(own)::value ? vectors.column : vectors.after;
        float of_columns[8][2];
        int documents[8][2];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int c = tile * kTile + 8 * n + AccumulatorColumn(lane, 0);
          const float2 pair = *reinterpret_cast<const float2*>(in_column + vector_at + c);
          of_columns[n][0] = pair.x;
          of_columns[n][1] = pair.y;
          if constexpr (decltype(own)::value) {
            documents[n][0] = document_of(first_token + c);
            documents[n][1] = document_of(first_token + c + 1);
          }
        }
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float scores[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float product = sums[8 * box + n][2 * half + i];
              if constexpr (decltype(own)::value) {
                const int in_tile = 8 * n + AccumulatorColumn(lane, i);
                const bool sees = valid[half] && in_tile <= own_row + 8 * half &&
                                  documents[n][i] == document[half];
                const float weight =
                    sees ? scale * Exp2((row[half] - of_columns[n][i]) * kLog2E) : 0.0f;
                scores[i] =
                    sees ? weight * fmaf(product, inverse_b[half], dnormaliser[half]) : 0.0f;
              } else {
                scores[i] = fmaf(product, before[half], before_normaliser[half]) *
                            (passed * of_columns[n][i]);
              }
              row_sums[half] += scores[i];
            }
            *StagedPair(staged, 8 * box + n, half) = Pack(scores[0], scores[1]);
          }
        }
      });
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (backward) break;
      const float sum = QuadSum(row_sums[half]);
      if (lane % 4 != 0 || !valid[half]) continue;
      const int in_chunk = own_tile * kTile + own_row + 8 * half;
      if (unit.column_tile == unit.row_tile) {
        view.args.row_sums[sizes.Row(unit.head, first_token + in_chunk)] = sum;
      }
      if (unit.column_tile == 0) {
        view.args.earlier_sums[vector_at + in_chunk] = unit.row_tile == 0 ? 0.0f : sum;
      }
    }
    block.StoreStaged(group, own_tile - unit.column_tile + 1, unit.of_p ? view.p : view.w,
                      unit.column_tile * kTile, own_tile * kTile, unit.chunk, unit.head);
  }
  if (thread == 0) WaitUntilStoresRead();
}

__global__ void __launch_bounds__(kThreads, 1)
    MlstmChunkScoresKernel(const __grid_constant__ View view) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  RunBlock(
      shared, [&](const Block& block) { Produce(view, block); },
      [&](const Block& block, int group) { Consume(view, block, group); });
#else
  __trap();
#endif
}

}  // namespace

void ComputeChunkScores(const MlstmLayout& sizes, const MlstmVectors& vectors,
                        const MlstmChunkScores& args) {
  View view{.sizes = sizes, .vectors = vectors, .args = args};
  view.q = MapRows(sizes, args.q, sizes.keys, kTile);
  view.k = MapRows(sizes, args.k, sizes.keys, kTile);
  view.w = MapScores(sizes, args.w);
  if (args.dh != nullptr) {
    view.p = MapScores(sizes, args.p);
    view.v = MapRows(sizes, args.v, sizes.values, kTile);
    view.dh = MapRows(sizes, args.dh, sizes.values, kTile);
  }
  LaunchUnits<MlstmChunkScoresKernel>("mlstm chunk scores", Units(view), view);
}

}  // namespace eyrie
