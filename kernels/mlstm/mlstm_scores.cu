// The scores within each tile of the mLSTM, on the tensor cores, and what the normaliser takes from
// a tile. A block computes a tile, a warp 16 of its rows; queries and keys pass through shared
// memory 64 columns at a time.
#include "core/round.h"
#include "kernels/mlstm/mlstm_kernels.cuh"
#include "kernels/mma.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kTile = kMlstmTile, kColumns = 64, kThreads = 2 * kTile;
constexpr uint32_t kPieceBytes = kTile * kColumns * 2;

using Sums = Accumulators<1, kTile>;

template <bool kBackward>
__global__ void __launch_bounds__(kThreads)
    ScoresKernel(const MlstmLayout sizes, const MlstmVectors vectors, const MlstmScores scores) {
  __shared__ __align__(128) unsigned char pieces[4 * kPieceBytes];
  __shared__ float row[kTile], column[kTile], after[kTile], inverse_b[kTile], dnormaliser[kTile];
  __shared__ int documents[kTile];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int tile = static_cast<int>(blockIdx.x) % sizes.tiles;
  const int head = static_cast<int>(blockIdx.x) / sizes.tiles;
  const int begin = tile * kTile;
  const uint32_t base = SharedAddress(pieces);

  const int key_pieces = CeilDiv(sizes.keys, kColumns);
  const int all_pieces = key_pieces + (kBackward ? CeilDiv(sizes.values, kColumns) : 0);
  const auto copy = [&](int piece) {
    const bool of_keys = piece < key_pieces;
    const int width = of_keys ? sizes.keys : sizes.values;
    const int from = (of_keys ? piece : piece - key_pieces) * kColumns;
    const auto copy_rows = [&](uint32_t to, const Bf16* rows) {
      CopyTile<kColumns, kTile, kThreads>(to, width - from, rows, [&](int r) {
        return begin + r < sizes.tokens ? rows + sizes.Row(head, begin + r) * width + from
                                        : nullptr;
      });
    };
    const uint32_t stage = base + piece % 2 * 2 * kPieceBytes;
    copy_rows(stage, of_keys ? scores.q : scores.dh);
    copy_rows(stage + kPieceBytes, of_keys ? scores.k : scores.v);
  };
  copy(0);
  if (thread < kTile) {
    const int64_t at = head * sizes.padded() + begin + thread;
    const bool exists = begin + thread < sizes.tokens;
    row[thread] = vectors.row[at];
    column[thread] = vectors.column[at];
    after[thread] = vectors.after[at];
    inverse_b[thread] = kBackward && exists ? vectors.inverse_b[at] : 1.0f;
    dnormaliser[thread] = kBackward && exists ? vectors.dnormaliser[at] : 0.0f;
    documents[thread] = exists ? sizes.Document(head, begin + thread) : -2;
  }

  Sums w, p;
  SetZero<1, kTile>(w);
  SetZero<1, kTile>(p);
  for (int piece = 0; piece < all_pieces; ++piece) {
    // After the barrier this piece is there, and nobody reads the one before it any more.
    WaitForCopies();
    __syncthreads();
    if (piece + 1 < all_pieces) copy(piece + 1);
    const uint32_t queries = piece % 2 * 2 * kPieceBytes, keys = queries + kPieceBytes;
    const uint32_t rows = base + queries + warp * 16 * kColumns * 2;
    if (!kBackward || piece < key_pieces) {
      AddTransposed<kColumns, 1, kTile>(rows, base + keys, w);
    } else {
      AddTransposed<kColumns, 1, kTile>(rows, base + keys, p);
    }
    if constexpr (!kBackward) {
      const int key = piece * kColumns + thread;
      if (thread < kColumns && key < sizes.keys) {
        float sum = 0.0f;
#pragma unroll 8
        for (int r = 0; r < kTile; ++r) {
          const unsigned char* at =
              pieces + keys + ChunkOffset<kColumns>(r, thread / 8) + thread % 8 * 2;
          sum = fmaf(after[r], ToFloat(*reinterpret_cast<const Bf16*>(at)), sum);
        }
        scores.increments[(static_cast<int64_t>(head) * sizes.tiles + tile) * sizes.keys + key] =
            sum;
      }
    }
  }

  const float scale = rsqrtf(static_cast<float>(sizes.keys));
  const int64_t tile_at = (static_cast<int64_t>(head) * sizes.tiles + tile) * kTile * kTile;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = 16 * warp + AccumulatorRow(lane, 2 * half);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
      const int first = 8 * n + AccumulatorColumn(lane, 0);
      float of_w[2], of_p[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = first + i;
        const bool sees = c <= r && documents[c] == documents[r] && documents[c] != -2;
        const float weight = sees ? scale * Exp2((row[r] - column[c]) * kLog2E) : 0.0f;
        of_w[i] = sees ? weight * w[0][n][2 * half + i] * inverse_b[r] : 0.0f;
        sum += of_w[i];
        const float gradient = fmaf(p[0][n][2 * half + i], inverse_b[r], dnormaliser[r]);
        of_p[i] = sees ? weight * gradient : 0.0f;
      }
      const int64_t at = tile_at + r * kTile + first;
      *reinterpret_cast<uint32_t*>(scores.w + at) = Pack(of_w[0], of_w[1]);
      if (kBackward) *reinterpret_cast<uint32_t*>(scores.p + at) = Pack(of_p[0], of_p[1]);
    }
    if constexpr (!kBackward) {
      sum = QuadSum(sum);
      if (lane % 4 == 0 && begin + r < sizes.tokens) {
        scores.row_sums[sizes.Row(head, begin + r)] = sum;
      }
    }
  }
}

}  // namespace

void MlstmTileScores(const MlstmLayout& sizes, const MlstmVectors& vectors,
                     const MlstmScores& scores) {
  const dim3 grid(static_cast<unsigned>(sizes.all_heads() * sizes.tiles));
  const auto kernel = scores.dh != nullptr ? ScoresKernel<true> : ScoresKernel<false>;
  Launch("mlstm scores", kernel, grid, dim3(kThreads), 0, sizes, vectors, scores);
}

}  // namespace eyrie
