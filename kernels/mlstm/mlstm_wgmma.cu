// A pass of the mLSTM by Hopper's warpgroup products (mlstm_kernels.cuh says what a pass is). A
// block takes a head through a chunk for 256 of its keys and 128 of its values, and a cluster of
// blocks has all keys. Each of two warpgroups keeps 64 values of the state transposed, S^T [64
// values, 256 keys], as float32 accumulators. For a tile it computes, in this order,
//
//   O^T [64 values, 64 tokens] = S^T q^T      S^T = decay S^T + (seen v)^T k
//
// with S^T rounded to bfloat16, which then already lies as operand A needs it, and operands B in
// shared memory. Of O^T the blocks of a cluster give each other their keys' parts: each finishes
// 64 / blocks of the tokens while its state's product runs. A third warpgroup copies tiles into two
// stages. This way of sharing work among warpgroups is that of FlashAttention-3 (arXiv:2407.08608).
#include "core/round.h"
#include "kernels/mlstm/mlstm_state.cuh"
#include "kernels/mlstm/mlstm_wgmma_block.cuh"

namespace eyrie {
namespace {

using namespace mlstm_wgmma;

// A warpgroup that computes.
template <int kBlocks, bool kReverse>
__device__ __forceinline__ void Consume(const PassView& view,
                                        const PassBlock<kBlocks, kReverse>& block,
                                        const unsigned char* shared, int group) {
  using S = PassShape<kBlocks>;
  constexpr int kGroups = S::kGroups;
  const MlstmLayout& sizes = view.sizes;
  const MlstmPass<Bf16>& pass = view.pass;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int warp = thread / 32, head = block.head, rank = block.rank;
  const bool outputs = pass.o != nullptr, extra = pass.extra_seen != nullptr;
  const bool multiplies = outputs && pass.multiplied != nullptr;
  const MlstmShare share{head, static_cast<int>(blockIdx.z) * kBlocks + rank,
                         static_cast<int>(gridDim.z) * kBlocks, rank == 0 && lane % 4 == 0};
  const int group_value = block.first_value + 64 * group;
  const MlstmStatePart part{block.first_key, 0, group_value + 16 * warp, pass.values,
                            static_cast<int64_t>(head) * sizes.chunks + block.chunk};
  // Of the further key all blocks have the same.
  float state[kBlockKeys / 8][4], extra_state[2];
  EnterChunk(pass, part, extra, state, extra_state);

  const LaneChunk in_b = LaneOfB(lane);
  const uint32_t box_lane = ChunkOffset<64>(in_b.row, 2 * warp + in_b.chunk);
  const uint32_t outputs_at = block.base + S::kOutputs + group * S::kOutputBytes;

  for (int index = 0; index < block.tiles; ++index) {
    const int tile = block.TileAt(index);
    const uint32_t stage = block.Stage(index);
    AtRestart(sizes, pass, kReverse ? tile + 1 : tile, share, state, extra_state);
    // The first of the tokens that this block finishes.
    const int own_token = tile * kTile + rank * S::kOwnTokens;
    // A lane's two tokens of 8 in a vector of the tile.
    const unsigned char* vectors =
        shared + (block.Vectors(index) - block.base) + lane % 4 * sizeof(float2);
    const auto pair_of = [&](int vector, int tokens) {
      return *reinterpret_cast<const float2*>(vectors + vector * kVectorBytes +
                                              tokens * 8 * sizeof(float));
    };
    const float decay = expf(pass.log_decay[static_cast<int64_t>(head) * sizes.tiles + tile]);

    // Operand A [64 values, 16 tokens] of each step.
    uint32_t value_rows[kSteps][4];
    const auto load_values = [&] {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        LoadMatricesTransposed(value_rows[step],
                               stage + S::kValues + group * kBoxBytes + box_lane + step * 16 * 128);
      }
    };
    WaitForPhase(block.KeysFull(index), block.Parity(index));

    // Of the tokens that this block finishes: from its keys' state, from the tile.
    float sums[kGroups][4] = {}, within[kGroups][4] = {};
    if (outputs) {
      constexpr int kBatch = 2, kBatches = kBlockKeys / 16 / kBatch;
      float all_sums[kTile / 8][4] = {};
      uint32_t state_rows[2][kBatch][4];
      if (kBlocks > 1 && thread == 0) {
        FillBarrier::Arm(block.PartsFull(index, group), (kBlocks - 1) * S::kPartBytes);
      }
      const auto round_state = [&](int batch) {
#pragma unroll
        for (int i = 0; i < 4 * kBatch; ++i) {
          const float(&pair)[4] = state[2 * kBatch * batch + i / 2];
          state_rows[batch % 2][i / 4][i % 4] = Pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
      };
      round_state(0);
      round_state(1);
      WaitForPhase(block.QueriesFull(index), block.Parity(index));
      WgmmaFence();
#pragma unroll
      for (int batch = 0; batch < kBatches; ++batch) {
        uint32_t(&rows)[kBatch][4] = state_rows[batch % 2];
        if (batch >= 2) {
          WgmmaWait<1>();
#pragma unroll
          for (int i = 0; i < kBatch; ++i) Hold(rows[i]);
          round_state(batch);
          WgmmaFence();
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int step = batch * kBatch + i;
          Wgmma<false>(all_sums, rows[i],
                       RowsDescriptor<128>(stage + step / 4 * kBoxBytes, step % 4), step > 0);
        }
        WgmmaCommit();
      }
      load_values();
      if constexpr (kBlocks == 1) {
        // Nobody else has a part: what the tile adds goes on top.
        WgmmaWait<0>();
        Hold(all_sums);
#pragma unroll
        for (int j = 0; j < kGroups; ++j) {
          const float2 sees = pair_of(kSees, j);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            within[j][i] = all_sums[j][i] * (i % 2 == 0 ? sees.x : sees.y);
        }
      }
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const bool accumulates = kBlocks == 1 || step > 0;
        const uint32_t scores = stage + S::kScores;
        if constexpr (kReverse) {
          constexpr int kRow = 2 * S::kOwnTokens;
          Wgmma<true>(within, value_rows[step], ColumnsDescriptor<kRow>(scores, step, kRow * kTile),
                      accumulates);
        } else {
          Wgmma<false>(within, value_rows[step], RowsDescriptor<128>(scores, step), accumulates);
        }
      }
      WgmmaCommit();
      WgmmaWait<0>();
#pragma unroll
      for (int i = 0; i < 2 * kBatch; ++i) Hold(state_rows[i / kBatch][i % kBatch]);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) Hold(value_rows[step]);
      if constexpr (kBlocks > 1) Hold(all_sums);
      Hold(within);
      FreeBarrier::Arrive(block.QueriesFree(index));
      // Once the tile before is stored, what the outputs are multiplied with takes their place.
      if (thread == 0) {
        WaitUntilStoresRead();
        if (multiplies) {
          FillBarrier::Arm(block.MultipliedFull(group), S::kOutputBytes);
          LoadBox(outputs_at, view.multiplied, block.MultipliedFull(group), group_value,
                  head % sizes.heads, own_token, head / sizes.heads);
        }
      }

      if constexpr (kBlocks > 1) {
        // Who has all others' parts of a tile knows that they have read its own parts of the tile
        // before: two buffers are enough.
#pragma unroll
        for (int to = 0; to < kBlocks; ++to) {
#pragma unroll
          for (int j = 0; j < kGroups; ++j) {
            const float(&sum)[4] = all_sums[to * kGroups + j];
            if (to != rank) {
              StoreRemote(block.PartAt(index, group, rank, to, j, thread),
                          block.PartsFull(index, group), to,
                          {__float_as_uint(sum[0]), __float_as_uint(sum[1]),
                           __float_as_uint(sum[2]), __float_as_uint(sum[3])});
            } else {
#pragma unroll
              for (int i = 0; i < 4; ++i) sums[j][i] = sum[i];
            }
          }
        }
      }
    }

    if (!outputs) load_values();
    float extra_sums[2] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t(&rows)[4] = value_rows[step];
      if (extra) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 values = Unpack(rows[i]), weights = pair_of(kExtraSeen, 2 * step + i / 2);
          extra_sums[i % 2] += values.x * weights.x + values.y * weights.y;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) rows[i] = Scale(rows[i], pair_of(kSeen, 2 * step + i / 2));
    }
#pragma unroll
    for (int n = 0; n < kBlockKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] *= decay;
    }
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Wgmma<true>(state, value_rows[step],
                  ColumnsDescriptor<128>(stage + S::kKeyBytes, step, kBoxBytes), true);
    }
    WgmmaCommit();

    if (outputs) {
      if constexpr (kBlocks > 1) {
        WaitForPhase(block.PartsFull(index, group), index / 2 % 2);
#pragma unroll
        for (int from = 0; from < kBlocks; ++from) {
          if (from == rank) continue;
#pragma unroll
          for (int j = 0; j < kGroups; ++j) {
            const uint32_t at = block.PartAt(index, group, from, rank, j, thread) - block.base;
            const float4 part = *reinterpret_cast<const float4*>(shared + at);
            sums[j][0] += part.x;
            sums[j][1] += part.y;
            sums[j][2] += part.z;
            sums[j][3] += part.w;
          }
        }
      }
      NamedBarrier(1 + group, kWarpgroup);
      if (multiplies) WaitForPhase(block.MultipliedFull(group), index % 2);
#pragma unroll
      for (int j = 0; j < kGroups; j += 2) {
        // A lane's 8 outputs lie as those that a warp's load of four matrices gives it.
        const uint32_t place = outputs_at + box_lane + j * 8 * 128;
        uint32_t packed[4], factors[4];
        float2 products[2] = {};
        if (multiplies) LoadMatricesTransposed(factors, place);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Two tokens of value i % 2 * 8 further.
          const int own = j + i / 2, tokens = rank * kGroups + own, at = i % 2 * 2;
          float first = within[own][at], second = within[own][at + 1];
          if constexpr (kBlocks > 1) {
            const float2 sees = pair_of(kSees, tokens);
            first = fmaf(sums[own][at], sees.x, first);
            second = fmaf(sums[own][at + 1], sees.y, second);
          }
          if (extra) {
            const float2 weights = pair_of(kExtraSees, tokens);
            first = fmaf(extra_state[i % 2], weights.x, first);
            second = fmaf(extra_state[i % 2], weights.y, second);
          }
          if (multiplies) {
            const float2 pair = Unpack(factors[i]);
            products[i / 2].x = fmaf(first, pair.x, products[i / 2].x);
            products[i / 2].y = fmaf(second, pair.y, products[i / 2].y);
          }
          if (pass.factor != nullptr) {
            const float2 factor = pair_of(kFactor, tokens);
            first *= factor.x;
            second *= factor.y;
          }
          packed[i] = Pack(first, second);
        }
        StoreMatricesTransposed(place, packed);
        if (multiplies) {
          const int slot = group_value / 16 + warp;
          const int64_t slots = pass.values / 16;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float2 sum = {ColumnSum(products[i].x), ColumnSum(products[i].y)};
            if (lane >= 4 || slot >= slots) continue;
            *reinterpret_cast<float2*>(pass.products + (head * slots + slot) * sizes.padded() +
                                       own_token + (j + i) * 8 + 2 * lane) = sum;
          }
        }
      }
      FenceForBulkCopies();
      NamedBarrier(1 + group, kWarpgroup);
      if (thread == 0 && group_value < pass.values && own_token < sizes.tokens) {
        StoreBox(view.o, outputs_at, group_value, head % sizes.heads, own_token,
                 head / sizes.heads);
      }
    }

    WgmmaWait<0>();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) Hold(value_rows[step]);
    Hold(state);
    if (extra) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        extra_state[i] = fmaf(decay, extra_state[i], QuadSum(extra_sums[i]));
      }
    }
    FreeBarrier::Arrive(block.KeysFree(index));
  }

  const int end = block.TileAt(block.tiles - 1) + (kReverse ? 0 : 1);
  if (StateLeaves(sizes, pass, end)) AtRestart(sizes, pass, end, share, state, extra_state);
  LeaveChunk(pass, part, extra && share.extra_counts, state, extra_state);
  if (thread == 0) WaitUntilStoresRead();
}

template <int kBlocks, bool kReverse>
__global__ void __launch_bounds__(kThreads, 1)
    MlstmWgmmaKernel(const __grid_constant__ PassView view) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared[];
  const PassBlock<kBlocks, kReverse> block(view.sizes, view.pass, SharedAddress(shared));
  if (threadIdx.x == 0) {
    block.InitBarriers();
    FenceForBulkCopies();
  }
  // All blocks of the cluster are there, with their barriers.
  ClusterBarrier();
  // Registers: three threads, one of each warpgroup, start with 504.
  constexpr int kOfProducer = kBlocks == 1 ? 24 : 40, kOfConsumer = (504 - kOfProducer) / 2;
  // The same in all lanes, as the compiler should know.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (group == kConsumers) {
    LowerRegisters<kOfProducer>();
    if (threadIdx.x == kConsumers * kWarpgroup) Produce(view, block);
    __syncwarp();
  } else {
    RaiseRegisters<kOfConsumer>();
    Consume(view, block, shared + (block.base - SharedAddress(shared)), group);
  }
  ClusterBarrier();  // until then others may reach this block's memory
#else
  __trap();
#endif
}

template <int kBlocks, bool kReverse>
void LaunchPass(const MlstmLayout& sizes, const MlstmPass<Bf16>& pass) {
  using S = PassShape<kBlocks>;
  constexpr uint32_t kOwn = S::kOwnTokens;
  PassView view{.sizes = sizes, .pass = pass};
  view.k = MapRows(sizes, pass.k, pass.keys, kTile);
  view.v = MapRows(sizes, pass.v, pass.values, kTile);
  if (pass.o != nullptr) {
    view.q = MapRows(sizes, pass.q, pass.keys, kTile);
    view.o = MapRows(sizes, pass.o, pass.values, kOwn);
    if (pass.multiplied != nullptr) {
      view.multiplied = MapRows(sizes, pass.multiplied, pass.values, kOwn);
    }
    const uint64_t rows = static_cast<uint64_t>(sizes.all_heads()) * sizes.tiles * kTile;
    view.scores = MakeTensorMap({.data = pass.scores,
                                 .dimensions = 2,
                                 .sizes = {kTile, rows},
                                 .strides = {kTile * sizeof(Bf16)},
                                 .box = {kReverse ? kOwn : kTile, kReverse ? kTile : kOwn}});
  }
  const dim3 grid(static_cast<unsigned>(sizes.all_heads()) * kBlocks,
                  static_cast<unsigned>(sizes.chunks), Pieces(pass.values, kBlockValues));
  ClusterLaunch<PassView>(MlstmWgmmaKernel<kBlocks, kReverse>, kBlocks, grid, kThreads, S::kShared)
      .Run("mlstm pass", view);
}

// Blocks of a cluster that has so many keys.
constexpr int BlocksFor(int keys) { return keys <= kBlockKeys ? 1 : 2; }

}  // namespace

bool MlstmRunsWgmma() { return RunsWgmma(MlstmWgmmaKernel<1, false>); }

bool MlstmFitsWgmma(const MlstmPass<Bf16>& pass) {
  // Blocks must be as many as is planned for.
  return MlstmRunsWgmma() && pass.keys > 128 && pass.keys <= 2 * kBlockKeys && pass.values >= 64 &&
         MlstmBlockOf(true, pass.keys).count(pass.keys, pass.values) ==
             BlocksFor(pass.keys) * CeilDiv(pass.values, kBlockValues);
}

void MlstmPassWgmma(const MlstmLayout& sizes, const MlstmPass<Bf16>& pass) {
  const auto launch = [&]<int kBlocks>(std::integral_constant<int, kBlocks>) {
    pass.reverse ? LaunchPass<kBlocks, true>(sizes, pass) : LaunchPass<kBlocks, false>(sizes, pass);
  };
  if (BlocksFor(pass.keys) == 1) {
    launch(std::integral_constant<int, 1>{});
  } else {
    launch(std::integral_constant<int, 2>{});
  }
}

}  // namespace eyrie
