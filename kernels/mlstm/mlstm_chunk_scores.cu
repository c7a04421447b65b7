// The scores within the mLSTM's chunks (mlstm_chunks.h). A block computes those of 128 tokens of a
// chunk with all of its tokens; the two blocks of a cluster have a chunk's halves. Scores across
// tiles take the ways that states take: what a token sees of the state before its tile, what the
// tiles between let pass, what an earlier token adds to the state after its tile.
#include "kernels/mlstm/mlstm_chunks.cuh"

namespace eyrie {
namespace {

using namespace mlstm_chunks;

struct View {
  MlstmLayout sizes;
  MlstmVectors vectors;
  MlstmChunkScores args;
  CUtensorMap q, k, v, dh;
};

// What a cluster does at a time: W, or P, of a chunk.
struct Unit {
  bool of_p;
  int head, chunk, first_tile, inner_steps;

  __device__ Unit(const View& view, int unit) {
    const MlstmLayout& sizes = view.sizes;
    const int kinds = view.args.dh == nullptr ? 1 : 2;
    of_p = unit % kinds != 0;
    head = unit / kinds / sizes.chunks;
    chunk = unit / kinds % sizes.chunks;
    first_tile = chunk * sizes.chunk_tiles;
    inner_steps = ((of_p ? sizes.values : sizes.keys) + 63) / 64;
  }
};
__host__ __device__ int64_t Units(const View& view) {
  return int64_t{view.sizes.all_heads()} * view.sizes.chunks * (view.args.dh == nullptr ? 1 : 2);
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
          [&](int j, uint32_t to, uint32_t full) {
            LoadBox(to, rows, full, 64 * s, in_sequence,
                    (unit.first_tile + kLeftBoxes * block.rank + j) * kTile, sequence);
          },
          [&](int j, uint32_t to, uint32_t full) {
            LoadShared(to, columns, full, 64 * s, in_sequence, (unit.first_tile + j) * kTile,
                       sequence);
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
  const int own_row = 16 * (thread / 32) + lane / 4;  // in the tile; and 8 further
  const int own_tile = kLeftBoxes * block.rank + group, units = static_cast<int>(Units(view));
  const float scale = rsqrtf(static_cast<float>(sizes.keys));
  int step = 0;
  for (int u = block.cluster; u < units; u += block.clusters) {
    const Unit unit(view, u);
    const ChunkTiles tiles(sizes, unit.head, unit.chunk, vectors.log_decay);
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
    if (own_tile >= tiles.count) continue;

    const int first_token = tiles.first * kTile, side = sizes.chunk_tiles * kTile;
    const int64_t vector_at = unit.head * sizes.padded() + first_token;
    Bf16* to = (unit.of_p ? view.args.p : view.args.w) +
               (static_cast<int64_t>(unit.head) * sizes.chunks + unit.chunk) * side * side;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = own_tile * kTile + own_row + 8 * half, token = first_token + r;
      const int64_t at = vector_at + r;
      const bool valid = token < sizes.tokens;
      const int document = valid ? sizes.Document(unit.head, token) : -2;
      const float row = vectors.row[at], before = vectors.before[at];
      const float inverse_b = backward && valid ? vectors.inverse_b[at] : 1.0f;
      // What the normaliser's gradient adds to a product before it is weighed, and after.
      const float dnormaliser = unit.of_p && valid ? vectors.dnormaliser[at] : 0.0f;
      const float before_normaliser = unit.of_p ? vectors.before_normaliser[at] : 0.0f;
      float sum = 0.0f;
#pragma unroll
      for (int tile = 0; tile < kMaxMlstmChunkTiles; ++tile) {
        if (tile > own_tile) continue;
        const float passed = tiles.Decay(tile + 1, own_tile);
        WithConstant(tile == own_tile, [&](auto own) {
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const int c = tile * kTile + 8 * n + AccumulatorColumn(lane, 0);
            const float* const in_column = decltype(own)::value ? vectors.column : vectors.after;
            const float2 pair = *reinterpret_cast<const float2*>(in_column + vector_at + c);
            float scores[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float product = sums[8 * tile + n][2 * half + i];
              const float of_column = i == 0 ? pair.x : pair.y;
              if constexpr (decltype(own)::value) {
                const bool sees = valid && c + i <= r &&
                                  sizes.Document(unit.head, first_token + c + i) == document;
                const float weight = sees ? scale * Exp2((row - of_column) * kLog2E) : 0.0f;
                scores[i] = sees ? weight * fmaf(product, inverse_b, dnormaliser) : 0.0f;
              } else {
                scores[i] = fmaf(product, before, before_normaliser) * (passed * of_column);
              }
              sum += scores[i];
            }
            *reinterpret_cast<uint32_t*>(to + static_cast<int64_t>(r) * side + c) =
                Pack(scores[0], scores[1]);
          }
        });
      }
      if (backward) continue;
      sum = QuadSum(sum);
      if (lane % 4 == 0 && valid) view.args.row_sums[sizes.Row(unit.head, token)] = sum;
    }
  }
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
  if (args.dh != nullptr) {
    view.v = MapRows(sizes, args.v, sizes.values, kTile);
    view.dh = MapRows(sizes, args.dh, sizes.values, kTile);
  }
  LaunchUnits("mlstm chunk scores", MlstmChunkScoresKernel, Units(view), view);
}

}  // namespace eyrie
