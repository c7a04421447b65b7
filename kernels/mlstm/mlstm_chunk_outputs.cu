// The outputs of the mLSTM's chunks (mlstm_chunks.h). A block computes those of 128 tokens and 256
// channels: first rows times the state, which a token then weighs as it sees it, then scores times
// the other rows of the chunk on top. The blocks of a cluster have a chunk's
// halves, of two blocks of channels.
#include "kernels/mlstm/mlstm_chunks.cuh"

namespace eyrie {
namespace {

using namespace mlstm_chunks;

constexpr int kColumns = 2;

struct View {
  MlstmLayout sizes;
  MlstmChunkOutputs args;
  int inner, width;
  CUtensorMap rows, others, o, multiplied, states, scores;
};

// What a cluster does at a time.
struct Unit {
  int head, chunk, column_block, first_column;

  __device__ Unit(const View& view, int unit, int column) {
    const int wide = ClustersAcross<kColumns>(view.width);
    column_block = unit % wide * kColumns + column;
    head = unit / wide / view.sizes.chunks;
    chunk = unit / wide % view.sizes.chunks;
    first_column = column_block * kMlstmChunkColumns;
  }
};
__host__ __device__ int64_t Units(const View& view) {
  return int64_t{view.sizes.all_heads()} * view.sizes.chunks * ClustersAcross<kColumns>(view.width);
}
// Of the way of the states.
template <bool kReverse>
__device__ __forceinline__ int ChunksBefore(const View& view, const Unit& unit) {
  return kReverse ? view.sizes.chunks - 1 - unit.chunk : unit.chunk;
}
// None where the state is zero; twice as many where there is a rest of it too.
template <bool kReverse>
__device__ __forceinline__ int InnerSteps(const View& view, const Unit& unit) {
  const int before = ChunksBefore<kReverse>(view, unit), whole = (view.inner + 63) / 64;
  if (view.args.entered) return before < kMlstmRests ? 2 * whole : whole;
  return before > 0 ? whole : 0;
}

template <bool kReverse, bool kTransposed>
__device__ __forceinline__ void Produce(const View& view, const Block<kColumns>& block) {
  const MlstmLayout& sizes = view.sizes;
  const int units = static_cast<int>(Units(view));
  int step = 0;
  for (int i = block.cluster; i < units; i += block.clusters) {
    const Unit unit(view, i, block.column);
    const int in_sequence = unit.head % sizes.heads, sequence = unit.head / sizes.heads;
    const int first_tile = unit.chunk * sizes.chunk_tiles;
    const int count = min(sizes.chunk_tiles, sizes.tiles - first_tile);
    const int whole = (view.inner + 63) / 64, inner_steps = InnerSteps<kReverse>(view, unit);
    for (int s = 0; s < inner_steps; ++s, ++step) {
      const int inner = s % whole * 64;
      const int place = s < whole ? unit.chunk + (kReverse ? 1 : 0)
                                  : sizes.RestPlace(ChunksBefore<kReverse>(view, unit), kReverse);
      block.Fill(
          step, 0,
          [&](int j, const auto& load) {
            load(view.rows, inner, in_sequence, (first_tile + kLeftBoxes * block.row + j) * kTile,
                 sequence);
          },
          [&](int j, const auto& load) {
            const int along = unit.first_column + 64 * j;
            load(view.states, kTransposed ? inner : along, kTransposed ? along : inner, place,
                 unit.head);
          });
    }
    for (int tile = 0; tile < count; ++tile, ++step) {
      block.Fill(
          step, 0,
          [&](int j, const auto& load) {
            const int own = (kLeftBoxes * block.row + j) * kTile, other = tile * kTile;
            load(view.scores, kReverse ? own : other, kReverse ? other : own, unit.chunk,
                 unit.head);
          },
          [&](int j, const auto& load) {
            load(view.others, unit.first_column + 64 * j, in_sequence, (first_tile + tile) * kTile,
                 sequence);
          });
    }
  }
}

template <bool kReverse, bool kTransposed>
__device__ __forceinline__ void Consume(const View& view, const Block<kColumns>& block, int group) {
  const MlstmLayout& sizes = view.sizes;
  const MlstmChunkOutputs& args = view.args;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int warp = thread / 32, own_row = 16 * warp + lane / 4;  // in the tile; and 8 further
  const int units = static_cast<int>(Units(view));
  const bool multiplies = args.multiplied != nullptr;
  const uint32_t staged_at = block.Staged(group);
  unsigned char* staged = block.memory + (staged_at - block.base);
  // The warpgroup's tile of the chunk.
  const int own_tile = kLeftBoxes * block.row + group;
  int step = 0, parity = 0;
  for (int u = block.cluster; u < units; u += block.clusters) {
    const Unit unit(view, u, block.column);
    const ChunkTiles tiles(sizes, unit.head, unit.chunk, args.log_decay);
    const bool exists = own_tile < tiles.count;
    const int begin = (tiles.first + own_tile) * kTile;
    const int in_sequence = unit.head % sizes.heads, sequence = unit.head / sizes.heads;
    const int64_t own_token = unit.head * sizes.padded() + begin + own_row;
    if (multiplies && exists && thread == 0) {
      WaitUntilStoresRead();
      FillBarrier::Arm(block.StagedFull(group), kStagedBytes);
      for (int j = 0; j < kRightBoxes; ++j) {
        LoadBox(staged_at + j * kBoxBytes, view.multiplied, block.StagedFull(group),
                unit.first_column + 64 * j, in_sequence, begin, sequence);
      }
    }

    float sums[kMlstmChunkColumns / 8][4];
#pragma unroll
    for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }
    const int inner_steps = InnerSteps<kReverse>(view, unit);
    for (int s = 0; s < inner_steps; ++s, ++step) {
      const uint32_t left = block.Stage(step) + group * kBoxBytes;
      const uint32_t right = block.Stage(step) + kRight;
      block.WaitForStage(step);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint64_t b = kTransposed ? RowsDescriptor<128>(right, i)
                                       : ColumnsDescriptor<128>(right, i, kBoxBytes);
        Wgmma<false, !kTransposed>(sums, RowsDescriptor<128>(left, i), b, true);
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (s > 0) block.Release(step - 1);
    }
    WgmmaWait<0>();
    Hold(sums);
    if (inner_steps > 0) block.Release(step - 1);

    if (exists) {
      const float passed =
          kReverse ? tiles.Decay(own_tile + 1, tiles.count) : tiles.Decay(0, own_tile);
      float weights[2], extra_weights[2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        weights[half] = args.sees[own_token + 8 * half] * passed;
        if (args.extra_sees == nullptr) continue;
        extra_weights[half] = args.extra_sees[own_token + 8 * half] * passed;
      }
      const float* normalisers =
          args.normalisers +
          (static_cast<int64_t>(unit.head) * (sizes.chunks + 1) + unit.chunk + (kReverse ? 1 : 0)) *
              view.width;
#pragma unroll
      for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
        const int column = unit.first_column + 8 * n + AccumulatorColumn(lane, 0);
        float2 extra = {0.0f, 0.0f};
        if (args.extra_sees != nullptr && column < view.width) {
          extra = *reinterpret_cast<const float2*>(normalisers + column);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float added = extra_weights[i / 2] * (i % 2 == 0 ? extra.x : extra.y);
          sums[n][i] = fmaf(sums[n][i], weights[i / 2], added);
        }
      }
    }
    // Tiles [seen_begin, seen_end) of the chunk have tokens that those of this one see.
    const int seen_begin = kReverse ? min(own_tile, tiles.count) : 0;
    const int seen_end = kReverse ? tiles.count : min(own_tile + 1, tiles.count);
    const auto skip = [&](int count) {
      for (int i = 0; i < count; ++i, ++step) {
        block.WaitForStage(step);
        block.Release(step);
      }
    };
    skip(seen_begin);
    for (int tile = seen_begin; tile < seen_end; ++tile, ++step) {
      const uint32_t left = block.Stage(step) + group * kBoxBytes;
      const uint32_t right = block.Stage(step) + kRight;
      block.WaitForStage(step);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint64_t a =
            kReverse ? ColumnsDescriptor<128>(left, i, kBoxBytes) : RowsDescriptor<128>(left, i);
        Wgmma<kReverse, true>(sums, a, ColumnsDescriptor<128>(right, i, kBoxBytes), true);
      }
      WgmmaCommit();
      WgmmaWait<0>();
      Hold(sums);
      block.Release(step);
    }
    skip(tiles.count - seen_end);
    if (!exists) continue;

    float factors[2] = {1.0f, 1.0f}, products[2] = {};
    if (args.factor != nullptr) {
#pragma unroll
      for (int half = 0; half < 2; ++half) factors[half] = args.factor[own_token + 8 * half];
    }
    if (multiplies) {
      WaitForBlock(block.StagedFull(group), parity);
      parity ^= 1;
    } else {
      if (thread == 0) WaitUntilStoresRead();
      NamedBarrier(1 + group, kWarpgroup);
    }
#pragma unroll
    for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t* place = StagedPair(staged, n, half);
        const float first = sums[n][2 * half], second = sums[n][2 * half + 1];
        if (multiplies) {
          const float2 pair = Unpack(*place);
          products[half] = fmaf(first, pair.x, products[half]);
          products[half] = fmaf(second, pair.y, products[half]);
        }
        *place = Pack(first * factors[half], second * factors[half]);
      }
    }
    if (multiplies) {
      const int parts = MlstmColumnBlocks(view.width);
      float* to = args.products +
                  (static_cast<int64_t>(unit.head) * parts + unit.column_block) * sizes.padded() +
                  begin + own_row;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = QuadSum(products[half]);
        if (lane % 4 == 0 && unit.first_column < view.width) to[8 * half] = sum;
      }
    }
    FenceForBulkCopies();
    NamedBarrier(1 + group, kWarpgroup);
    if (thread != 0) continue;
    for (int j = 0; j < kRightBoxes; ++j) {
      const int column = unit.first_column + 64 * j;
      if (column >= view.width) break;
      StoreBox(view.o, staged_at + j * kBoxBytes, column, in_sequence, begin, sequence);
    }
  }
  if (thread == 0) WaitUntilStoresRead();
}

template <bool kReverse, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 1)
    MlstmChunkOutputsKernel(const __grid_constant__ View view) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  RunBlock<kColumns>(
      shared, [&](const Block<kColumns>& block) { Produce<kReverse, kTransposed>(view, block); },
      [&](const Block<kColumns>& block, int group) {
        Consume<kReverse, kTransposed>(view, block, group);
      });
#else
  __trap();
#endif
}

}  // namespace

void ComputeChunkOutputs(const MlstmLayout& sizes, const MlstmChunkOutputs& args) {
  View view{.sizes = sizes, .args = args};
  view.inner = args.transposed ? sizes.values : sizes.keys;
  view.width = args.transposed ? sizes.keys : sizes.values;
  view.rows = MapRows(sizes, args.rows, view.inner, kTile);
  view.others = MapRows(sizes, args.others, view.width, kTile);
  view.o = MapRows(sizes, args.o, view.width, kTile);
  if (args.multiplied != nullptr) {
    view.multiplied = MapRows(sizes, args.multiplied, view.width, kTile);
  }
  view.states = MapStates(sizes, args.states);
  view.scores = MapScores(sizes, args.scores);
  const auto launch = [&]<bool kReverse, bool kTransposed>() {
    LaunchUnits<kColumns, MlstmChunkOutputsKernel<kReverse, kTransposed>>("mlstm chunk outputs",
                                                                          Units(view), view);
  };
  if (args.reverse) {
    args.transposed ? launch.template operator()<true, true>()
                    : launch.template operator()<true, false>();
  } else {
    args.transposed ? launch.template operator()<false, true>()
                    : launch.template operator()<false, false>();
  }
}

}  // namespace eyrie
