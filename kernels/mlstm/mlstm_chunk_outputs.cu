// The outputs of the mLSTM's chunks (mlstm_chunks.h). A block computes those of 128 tokens and 256
// channels: first rows times the state, which a token then weighs as it sees it, then scores times
// the other rows of the chunk on top. The blocks of a cluster have 256 tokens, whose other rows are
// only those that they see. What reads the same state is done at the same time: both halves of a
// chunk, all channels, both passes.
#include "kernels/mlstm/mlstm_chunks.cuh"

namespace eyrie {
namespace {

using namespace mlstm_chunks;

// Clusters of two blocks. Four, with the rows in common of two blocks of columns, would halve what
// the L2 cache has to give of the rows, but leave 12 of an H100's multiprocessors without work, as
// only clusters of two fit all of these.

struct Pass {
  MlstmChunkOutputs args;
  int inner, width;
  CUtensorMap rows, others, o, multiplied, states, scores;
};
constexpr int kMaxPasses = 2;
struct View {
  MlstmLayout sizes;
  int passes;
  Pass pass[kMaxPasses];

  // How many blocks have the channels of the passes before the first one, the second one, ...
  __host__ __device__ int Across(int end) const {
    int across = 0;
    for (int i = 0; i < end; ++i) across += MlstmColumnBlocks(pass[i].width);
    return across;
  }
};

// What a cluster does at a time: 256 tokens of a chunk and a block of a pass's channels.
template <bool kReverse>
struct Unit {
  int pass, head, chunk, column_block, first_column;
  int first_tile, tiles;     // of the chunk
  int row_tile;              // in the chunk, as all below: the first one of the tokens
  int seen_begin, seen_end;  // tiles whose tokens some of them see: none where they do not exist
  int chunks_before;         // of the way of the states
  int whole_steps;           // of a state
  int inner_steps;           // none where it is zero; twice as many where there is a rest of it too

  __device__ Unit(const View& view, int unit) {
    const MlstmLayout& sizes = view.sizes;
    const int down = ClustersDown(sizes.chunk_tiles), across = view.Across(view.passes);
    // The later half first in every other pair: else half of the clusters would always have it,
    // and with it more tiles.
    const int half = down == 1 ? 0 : (unit + unit / 2) % 2;
    const int at = unit / down % across;
    pass = at >= view.Across(1) ? 1 : 0;
    column_block = at - view.Across(pass);
    first_column = column_block * kMlstmChunkColumns;
    chunk = unit / down / across % sizes.chunks;
    head = unit / down / across / sizes.chunks;

    first_tile = chunk * sizes.chunk_tiles;
    tiles = min(sizes.chunk_tiles, sizes.tiles - first_tile);
    row_tile = half * kClusterTiles;
    const bool exists = row_tile < tiles;
    seen_begin = kReverse ? min(row_tile, tiles) : 0;
    seen_end = kReverse ? tiles : exists ? min(row_tile + kClusterTiles, tiles) : 0;
    chunks_before = kReverse ? sizes.chunks - 1 - chunk : chunk;
    whole_steps = (view.pass[pass].inner + 63) / 64;
    const bool entered = view.pass[pass].args.entered;
    const bool zero = !exists || (chunks_before == 0 && !entered);
    inner_steps = (zero ? 0 : entered && chunks_before < kMlstmRests ? 2 : 1) * whole_steps;
  }
};
__host__ __device__ int64_t Units(const View& view) {
  return int64_t{view.sizes.all_heads()} * view.sizes.chunks *
         ClustersDown(view.sizes.chunk_tiles) * view.Across(view.passes);
}

template <bool kReverse>
__device__ __forceinline__ void Produce(const View& view, const Block& block) {
  const MlstmLayout& sizes = view.sizes;
  const int units = static_cast<int>(Units(view));
  int step = 0;
  for (int i = block.cluster; i < units; i += block.clusters) {
    const Unit<kReverse> unit(view, i);
    const Pass& pass = view.pass[unit.pass];
    const bool transposed = pass.args.transposed;
    const int in_sequence = unit.head % sizes.heads, sequence = unit.head / sizes.heads;
    const int row_tile = unit.row_tile + kLeftBoxes * block.row;
    for (int s = 0; s < unit.inner_steps; ++s, ++step) {
      const bool of_rest = s >= unit.whole_steps;
      const int inner = (of_rest ? s - unit.whole_steps : s) * 64;
      const int place = of_rest ? sizes.RestPlace(unit.chunks_before, kReverse)
                                : sizes.StatePlace(unit.chunk + (kReverse ? 1 : 0));
      block.Fill(
          step, 0,
          [&](int j, const auto& load) {
            load(pass.rows, inner, in_sequence, (unit.first_tile + row_tile + j) * kTile, sequence);
          },
          [&](int j, const auto& load) {
            const int along = unit.first_column + 64 * j;
            load(pass.states, transposed ? inner : along, transposed ? along : inner, place,
                 unit.head);
          });
    }
    for (int tile = unit.seen_begin; tile < unit.seen_end; ++tile, ++step) {
      block.Fill(
          step, 0,
          [&](int j, const auto& load) {
            const int own = (row_tile + j) * kTile, other = tile * kTile;
            load(pass.scores, kReverse ? own : other, kReverse ? other : own, unit.chunk,
                 unit.head);
          },
          [&](int j, const auto& load) {
            load(pass.others, unit.first_column + 64 * j, in_sequence,
                 (unit.first_tile + tile) * kTile, sequence);
          });
    }
  }
}

template <bool kReverse>
__device__ __forceinline__ void Consume(const View& view, const Block& block, int group) {
  const MlstmLayout& sizes = view.sizes;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int warp = thread / 32, own_row = 16 * warp + lane / 4;  // in the tile; and 8 further
  const int units = static_cast<int>(Units(view));
  unsigned char* staged = block.memory + (block.Staged(group) - block.base);
  int step = 0, parity = 0;
  for (int u = block.cluster; u < units; u += block.clusters) {
    const Unit<kReverse> unit(view, u);
    const Pass& pass = view.pass[unit.pass];
    const MlstmChunkOutputs& args = pass.args;
    const bool multiplies = args.multiplied != nullptr;
    const ChunkTiles tiles(sizes, unit.head, unit.chunk, args.log_decay);
    const int own_tile = unit.row_tile + kLeftBoxes * block.row + group;
    const bool exists = own_tile < tiles.count;
    const int begin = (tiles.first + own_tile) * kTile;
    const int in_sequence = unit.head % sizes.heads, sequence = unit.head / sizes.heads;
    const int64_t own_token = unit.head * sizes.padded() + begin + own_row;
    if (multiplies && exists) {
      block.FetchStaged(group, pass.multiplied, unit.first_column, in_sequence, begin, sequence);
    }

    float sums[kMlstmChunkColumns / 8][4];
#pragma unroll
    for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }
    // Adds the products of so many steps: add(left, right) starts those of a stage.
    const auto multiply = [&](int steps, const auto& add) {
      for (int s = 0; s < steps; ++s, ++step) {
        block.WaitForStage(step);
        WgmmaFence();
        add(block.Stage(step) + group * kBoxBytes, block.Stage(step) + kRight);
        WgmmaCommit();
        WgmmaWait<1>();
        if (s > 0) block.Release(step - 1);
      }
      WgmmaWait<0>();
      Hold(sums);
      if (steps > 0) block.Release(step - 1);
    };
    WithConstant(args.transposed, [&](auto transposed) {
      constexpr bool kTransposed = decltype(transposed)::value;
      multiply(unit.inner_steps, [&](uint32_t left, uint32_t right) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          const uint64_t b = kTransposed ? RowsDescriptor<128>(right, i)
                                         : ColumnsDescriptor<128>(right, i, kBoxBytes);
          Wgmma<false, !kTransposed>(sums, RowsDescriptor<128>(left, i), b, true);
        }
      });
    });

    // By all: where some leave it out, the compiler lets no two products overlap.
    const float passed =
        kReverse ? tiles.Decay(own_tile + 1, tiles.count) : tiles.Decay(0, own_tile);
    float weights[2] = {}, extra_weights[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!exists) continue;
      weights[half] = args.sees[own_token + 8 * half] * passed;
      if (args.extra_sees == nullptr) continue;
      extra_weights[half] = args.extra_sees[own_token + 8 * half] * passed;
    }
    const int64_t boundary =
        static_cast<int64_t>(unit.head) * (sizes.chunks + 1) + unit.chunk + (kReverse ? 1 : 0);
    const float* normalisers = args.normalisers + boundary * pass.width;
#pragma unroll
    for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
      const int column = unit.first_column + 8 * n + AccumulatorColumn(lane, 0);
      float2 extra = {0.0f, 0.0f};
      if (args.extra_sees != nullptr && column < pass.width) {
        extra = *reinterpret_cast<const float2*>(normalisers + column);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float added = extra_weights[i / 2] * (i % 2 == 0 ? extra.x : extra.y);
        sums[n][i] = fmaf(sums[n][i], weights[i / 2], added);
      }
    }
    // Tiles [seen_begin, seen_end) of the chunk have tokens that those of this one see.
    const int seen_begin = kReverse ? min(own_tile, unit.seen_end) : 0;
    const int seen_end = kReverse ? unit.seen_end : min(own_tile + 1, unit.seen_end);
    const auto skip = [&](int count) {
      for (int i = 0; i < count; ++i, ++step) {
        block.WaitForStage(step);
        block.Release(step);
      }
    };
    skip(seen_begin - unit.seen_begin);
    multiply(seen_end - seen_begin, [&](uint32_t left, uint32_t right) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint64_t a =
            kReverse ? ColumnsDescriptor<128>(left, i, kBoxBytes) : RowsDescriptor<128>(left, i);
        Wgmma<kReverse, true>(sums, a, ColumnsDescriptor<128>(right, i, kBoxBytes), true);
      }
    });
    skip(unit.seen_end - seen_end);
    if (!exists) continue;

    float factors[2] = {1.0f, 1.0f}, products[2] = {};
    if (args.factor != nullptr) {
#pragma unroll
      for (int half = 0; half < 2; ++half) factors[half] = args.factor[own_token + 8 * half];
    }
    if (multiplies) {
      WaitForPhase(block.StagedFull(group), parity);
      parity ^= 1;
    } else {
      block.AwaitStaged(group);
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
      const int parts = MlstmColumnBlocks(pass.width);
      float* to = args.products +
                  (static_cast<int64_t>(unit.head) * parts + unit.column_block) * sizes.padded() +
                  begin + own_row;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = QuadSum(products[half]);
        if (lane % 4 == 0 && unit.first_column < pass.width) to[8 * half] = sum;
      }
    }
    block.StoreStaged(group, (pass.width - unit.first_column + 63) / 64, pass.o, unit.first_column,
                      in_sequence, begin, sequence);
  }
  if (thread == 0) WaitUntilStoresRead();
}

template <bool kReverse>
__global__ void __launch_bounds__(kThreads, 1)
    MlstmChunkOutputsKernel(const __grid_constant__ View view) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  RunBlock(
      shared, [&](const Block& block) { Produce<kReverse>(view, block); },
      [&](const Block& block, int group) { Consume<kReverse>(view, block, group); });
#else
  __trap();
#endif
}

Pass PassOf(const MlstmLayout& sizes, const MlstmChunkOutputs& args) {
  Pass pass{.args = args};
  pass.inner = args.transposed ? sizes.values : sizes.keys;
  pass.width = args.transposed ? sizes.keys : sizes.values;
  pass.rows = MapRows(sizes, args.rows, pass.inner, kTile);
  pass.others = MapRows(sizes, args.others, pass.width, kTile);
  pass.o = MapRows(sizes, args.o, pass.width, kTile);
  if (args.multiplied != nullptr) {
    pass.multiplied = MapRows(sizes, args.multiplied, pass.width, kTile);
  }
  pass.states = MapStates(sizes, args.states);
  pass.scores = MapScores(sizes, args.scores);
  return pass;
}

}  // namespace

void ComputeChunkOutputs(const MlstmLayout& sizes,
                         std::initializer_list<MlstmChunkOutputs> passes) {
  EYRIE_CHECK(passes.size() > 0 && passes.size() <= kMaxPasses, passes.size(), " passes");
  View view{.sizes = sizes, .passes = 0};
  const bool reverse = passes.begin()->reverse;
  for (const MlstmChunkOutputs& args : passes) {
    EYRIE_CHECK(args.reverse == reverse, "passes of both directions");
    view.pass[view.passes++] = PassOf(sizes, args);
  }
  if (reverse) {
    LaunchUnits<MlstmChunkOutputsKernel<true>>("mlstm chunk outputs", Units(view), view);
  } else {
    LaunchUnits<MlstmChunkOutputsKernel<false>>("mlstm chunk outputs", Units(view), view);
  }
}

}  // namespace eyrie
