// The states at the boundaries of the mLSTM's chunks (mlstm_chunks.h). A block takes 128 rows and
// 256 columns of a head's state through all chunks; a warpgroup keeps 64 of the rows as float32
// accumulators. Over a chunk these only add up, as each tile's rows are weighed by what decays
// until the chunk ends. At a boundary the state goes to memory through shared memory; where it is
// multiplied with what lay there before, that comes the same way. Products at the ends, where all
// of a gradient may be, are of float32 alone.
#include "kernels/mlstm/mlstm_chunks.cuh"

namespace eyrie {
namespace {

using namespace mlstm_chunks;

// Larger clusters would move fewer bytes, but all multiprocessors could not be given equally many
// states then.

struct View {
  MlstmLayout sizes;
  MlstmChunkStates args;
  CUtensorMap rows, columns, states;
};

// What a cluster does at a time.
struct Unit {
  int head, first_row, first_column, column_block;

  __device__ Unit(const MlstmLayout& sizes, int unit, int row) {
    const int wide = MlstmColumnBlocks(sizes.values), high = MlstmRowBlocks(sizes.keys) / kRows;
    column_block = unit % wide;
    head = unit / wide / high;
    first_row = (unit / wide % high * kRows + row) * kMlstmChunkRows;
    first_column = column_block * kMlstmChunkColumns;
  }
};
__host__ __device__ int64_t Units(const MlstmLayout& sizes) {
  return int64_t{sizes.all_heads()} * MlstmColumnBlocks(sizes.values) *
         (MlstmRowBlocks(sizes.keys) / kRows);
}

[[maybe_unused]] __device__ __forceinline__ void Produce(const View& view, const Block& block) {
  const MlstmLayout& sizes = view.sizes;
  const int units = static_cast<int>(Units(sizes));
  int step = 0;
  for (int i = block.cluster; i < units; i += block.clusters) {
    const Unit unit(sizes, i, block.row);
    const int in_sequence = unit.head % sizes.heads, sequence = unit.head / sizes.heads;
    const int chunks = view.args.ChunksOnTheWay(sizes.chunks);
    for (int c = 0; c < chunks; ++c) {
      const int first = (view.args.reverse ? sizes.chunks - 1 - c : c) * sizes.chunk_tiles;
      for (int tile = first; tile < min(first + sizes.chunk_tiles, sizes.tiles); ++tile, ++step) {
        const int begin = tile * kTile;
        block.Fill(
            step, 2 * kVectorBytes,
            [&](int j, const auto& load) {
              load(view.rows, unit.first_row + 64 * j, in_sequence, begin, sequence);
            },
            [&](int j, const auto& load) {
              load(view.columns, unit.first_column + 64 * j, in_sequence, begin, sequence);
            });
        const int64_t at = unit.head * sizes.padded() + begin;
        const uint32_t vectors = block.Vectors(step), full = block.Full(step);
        LoadBytes(vectors, view.args.seen + at, kVectorBytes, full);
        LoadBytes(vectors + kVectorBytes, view.args.extra_seen + at, kVectorBytes, full);
      }
    }
  }
}

template <bool kReverse>
__device__ __forceinline__ void Consume(const View& view, const Block& block, int group) {
  const MlstmLayout& sizes = view.sizes;
  const MlstmChunkStates& args = view.args;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int warp = thread / 32, units = static_cast<int>(Units(sizes));
  unsigned char* staged = block.memory + (block.Staged(group) - block.base);
  const LaneChunk in_b = LaneOfB(lane);
  const uint32_t box_lane = ChunkOffset<64>(in_b.row, 2 * warp + in_b.chunk);
  int step = 0, parity = 0;
  for (int u = block.cluster; u < units; u += block.clusters) {
    const Unit unit(sizes, u, block.row);
    const int first_row = unit.first_row + 64 * group;
    const int lane_row = first_row + 16 * warp + lane / 4;  // and the one 8 further
    const bool extra = unit.column_block == 0;
    const auto entry_of = [&](int boundary) {
      return static_cast<int64_t>(unit.head) * (sizes.chunks + 1) + boundary;
    };

    // Calls body(pair of elements, where they lie in memory) for those that exist.
    float state[kMlstmChunkColumns / 8][4];
    const auto for_state = [&](const auto& body) {
#pragma unroll
      for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = lane_row + 8 * half;
          const int column = unit.first_column + 8 * n + AccumulatorColumn(lane, 0);
          if (row >= sizes.keys || column >= sizes.values) continue;
          body(state[n][2 * half], state[n][2 * half + 1],
               (static_cast<int64_t>(unit.head) * sizes.keys + row) * sizes.values + column);
        }
      }
    };
#pragma unroll
    for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] = 0.0f;
    }
    if (args.entering != nullptr) {
      for_state([&](float& first, float& second, int64_t at) {
        const float2 pair = *reinterpret_cast<const float2*>(args.entering + at);
        first = pair.x;
        second = pair.y;
      });
    }
    // The normaliser's, of the lane's two rows; alike in a quad.
    float extra_state[2] = {};
    if (extra && args.entering_n != nullptr) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (lane_row + 8 * i >= sizes.keys) continue;
        extra_state[i] = args.entering_n[unit.head * sizes.keys + lane_row + 8 * i];
      }
    }

    // Whether a product is due between the ends.
    const auto multiplies_at = [&](int boundary) {
      return kReverse && args.products != nullptr && boundary > 0 && boundary < sizes.chunks &&
             sizes.Restart(boundary * sizes.chunk_tiles) >= 0;
    };
    const auto write_product = [&](float product, int restart) {
      product = WarpSum(product);
      const int64_t entry = static_cast<int64_t>(unit.head) * (sizes.restarts + 1) + restart;
      const int part = (first_row / 64 * MlstmColumnBlocks(sizes.values) + unit.column_block) * 4;
      if (lane == 0 && unit.first_column < sizes.values) {
        args.products[entry * MlstmStateParts(sizes) + part + warp] = product;
      }
    };
    // Stores pair(first, second, what is staged there) of the state's elements in a place.
    const auto store = [&](int place, const auto& pair) {
#pragma unroll
      for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t* place = StagedPair(staged, n, half);
          *place = pair(state[n][2 * half], state[n][2 * half + 1], *place);
        }
      }
      const int boxes = first_row < sizes.keys ? (sizes.values - unit.first_column + 63) / 64 : 0;
      block.StoreStaged(group, boxes, view.states, unit.first_column, first_row, place, unit.head);
    };
    const auto keep = [&](int boundary, int chunks_before) {
      const bool multiplies = multiplies_at(boundary);
      float product = 0.0f;
      if (extra && lane % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = lane_row + 8 * i;
          if (row >= sizes.keys) continue;
          float* place = args.normalisers + entry_of(boundary) * sizes.keys + row;
          if (multiplies) product = fmaf(*place, extra_state[i], product);
          *place = extra_state[i];
        }
      }
      if (chunks_before == 0 && args.entering == nullptr) return;
      if (multiplies) {
        WaitForPhase(block.StagedFull(group), parity);
        parity ^= 1;
        store(sizes.StatePlace(boundary), [&](float first, float second, uint32_t staged_pair) {
          const float2 before = Unpack(staged_pair);
          product = fmaf(before.x, first, product);
          product = fmaf(before.y, second, product);
          return Pack(first, second);
        });
        write_product(product, sizes.Restart(boundary * sizes.chunk_tiles));
      } else {
        block.AwaitStaged(group);
        store(sizes.StatePlace(boundary),
              [](float first, float second, uint32_t) { return Pack(first, second); });
      }
      if (args.entering == nullptr || chunks_before >= kMlstmRests) return;
      block.AwaitStaged(group);
      store(sizes.RestPlace(chunks_before, kReverse),
            [](float first, float second, uint32_t rounded) {
              const float2 pair = Unpack(rounded);
              return Pack(first - pair.x, second - pair.y);
            });
    };

    for (int i = 0; i < sizes.chunks; ++i) {
      const int chunk = kReverse ? sizes.chunks - 1 - i : i;
      const ChunkTiles tiles(sizes, unit.head, chunk, args.log_decay);
      if (args.states != nullptr) keep(kReverse ? chunk + 1 : chunk, i);
      if (i == args.ChunksOnTheWay(sizes.chunks)) break;
      const float decay = tiles.Decay(0, tiles.count);
#pragma unroll
      for (int n = 0; n < kMlstmChunkColumns / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) state[n][j] *= decay;
      }
      const bool fetches = multiplies_at(kReverse ? chunk : chunk + 1);
      // Where the state is multiplied with one of full precision, its last tokens, of which most of
      // it may be, are as exact.
      const bool precise =
          args.others != nullptr && (kReverse ? chunk == 0 : chunk >= sizes.restarts - 1);
      float extra_sums[2] = {};
      // Takes operand A [64 rows, 16 tokens] of each step out of a tile's rows, which are there,
      // weighed; or what is left of it when it is rounded.
      const auto weigh = [&](int tile, int at, auto rest, uint32_t(&rows)[kSteps][4]) {
        const float passed = kReverse ? tiles.Decay(0, tile) : tiles.Decay(tile + 1, tiles.count);
        // A lane's two tokens of 8.
        const unsigned char* vectors =
            block.memory + (block.Vectors(at) - block.base) + lane % 4 * sizeof(float2);
        const auto pair_of = [&](int vector, int tokens) {
          const float2 pair = *reinterpret_cast<const float2*>(vectors + vector * kVectorBytes +
                                                               tokens * 8 * sizeof(float));
          return make_float2(pair.x * passed, pair.y * passed);
        };
        const uint32_t box = block.Stage(at) + group * kBoxBytes + box_lane;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          LoadMatricesTransposed(rows[s], box + s * 16 * 128);
        }
        if (!rest && extra) {
#pragma unroll
          for (int i = 0; i < 4 * kSteps; ++i) {
            const float2 values = Unpack(rows[i / 4][i % 4]), weights = pair_of(1, i / 2);
            extra_sums[i % 2] += values.x * weights.x + values.y * weights.y;
          }
        }
#pragma unroll
        for (int i = 0; i < 4 * kSteps; ++i) {
          uint32_t& pair = rows[i / 4][i % 4];
          const float2 values = Unpack(pair), weights = pair_of(0, i / 2);
          const float first = values.x * weights.x, second = values.y * weights.y;
          pair = rest ? PackRest(first, second) : Pack(first, second);
        }
      };
      uint32_t rows[kSteps][4], next[kSteps][4];
      const auto start_products = [&] {
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          Wgmma<true>(state, rows[s],
                      ColumnsDescriptor<128>(block.Stage(step) + kRight, s, kBoxBytes), true);
        }
        WgmmaCommit();
      };
      const auto finish_products = [&] {
        WgmmaWait<0>();
#pragma unroll
        for (int s = 0; s < kSteps; ++s) Hold(rows[s]);
        Hold(state);
      };
      // The next tile's rows are weighed while this one's products run, if they are there by then.
      bool weighed = false;
      for (int tile = 0; tile < tiles.count; ++tile, ++step) {
        if (!weighed) {
          block.WaitForStage(step);
          weigh(tile, step, std::false_type{}, next);
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int j = 0; j < 4; ++j) rows[s][j] = next[s][j];
        }
        start_products();
        if (fetches && tile == 0) {
          // What lies at the boundary that comes next, backward in time.
          block.FetchStaged(group, view.states, unit.first_column, first_row,
                            sizes.StatePlace(chunk), unit.head);
        }
        weighed = tile + 1 < tiles.count && block.StageIsThere(step + 1);
        if (weighed) weigh(tile + 1, step + 1, std::false_type{}, next);
        finish_products();
        if (precise) {
          weigh(tile, step, std::true_type{}, rows);
          start_products();
          finish_products();
        }
        block.Release(step);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        extra_state[j] = fmaf(decay, extra_state[j], QuadSum(extra_sums[j]));
      }
    }
    if (args.others != nullptr || args.leaving != nullptr) {
      float product = 0.0f;
      for_state([&](float first, float second, int64_t at) {
        if (args.others != nullptr) {
          const float2 pair = *reinterpret_cast<const float2*>(args.others + at);
          product = fmaf(pair.x, first, product);
          product = fmaf(pair.y, second, product);
        }
        if (args.leaving != nullptr) {
          *reinterpret_cast<float2*>(args.leaving + at) = make_float2(first, second);
        }
      });
      if (args.others != nullptr) {
        if (extra && lane % 4 == 0) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (lane_row + 8 * i >= sizes.keys) continue;
            const float other = args.others_n[unit.head * sizes.keys + lane_row + 8 * i];
            product = fmaf(other, extra_state[i], product);
          }
        }
        write_product(product, kReverse ? 0 : sizes.restarts);
      }
    }
    if (extra && args.leaving_n != nullptr && lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (lane_row + 8 * i >= sizes.keys) continue;
        args.leaving_n[unit.head * sizes.keys + lane_row + 8 * i] = extra_state[i];
      }
    }
  }
  if (thread == 0) WaitUntilStoresRead();
}

template <bool kReverse>
__global__ void __launch_bounds__(kThreads, 1)
    MlstmChunkStatesKernel(const __grid_constant__ View view) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  RunBlock(
      shared, [&](const Block& block) { Produce(view, block); },
      [&](const Block& block, int group) { Consume<kReverse>(view, block, group); });
#else
  __trap();
#endif
}

}  // namespace

void ComputeChunkStates(const MlstmLayout& sizes, const MlstmChunkStates& args) {
  View view{.sizes = sizes, .args = args};
  view.rows = MapRows(sizes, args.rows, sizes.keys, kTile);
  view.columns = MapRows(sizes, args.columns, sizes.values, kTile);
  if (args.states != nullptr) view.states = MapStates(sizes, args.states);
  if (args.reverse) {
    LaunchUnits<MlstmChunkStatesKernel<true>>("mlstm chunk states", Units(sizes), view);
  } else {
    LaunchUnits<MlstmChunkStatesKernel<false>>("mlstm chunk states", Units(sizes), view);
  }
}

}  // namespace eyrie
