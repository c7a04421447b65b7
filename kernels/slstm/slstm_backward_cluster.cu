// The sLSTM backward through time on the tensor cores, as one kernel over all tokens. As in the
// forward pass, a cluster of blocks takes one head of 16 sequences, and a block has 32 of the
// head's units and the columns of r that lead to their gates. From these gates' gradients it
// computes its share of the gradient of every unit's y one token earlier,
//
//   share [all units, 16 sequences] = r dp_t     over the block's 4 gates of 32 units,
//
// and writes it into the shared memory of the blocks whose units these are, which add up the
// shares in the order of the blocks. Warps divide the units; r stays in registers, as operand A.
// A cluster of one block has nobody to wait for but its own threads: remote stores, which need a
// second block, and their barriers are not used then.
#include "kernels/slstm/slstm_kernels.cuh"
#include "kernels/slstm/slstm_tiles.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;
using View = SlstmBackwardView<Bf16>;

template <int kBlocks>
struct BackwardShape {
  // What a block gets from each block: for each of its 2 tiles and 2 groups of 8 sequences, the
  // accumulators of a warp. Two buffers; then, twice, the gradients of the block's gates, [16
  // sequences, 4 gates, 32 units] with 16 bytes between rows; then the buffers' barriers.
  static constexpr uint32_t kFragment = 32 * sizeof(float4), kShare = 4 * kFragment;
  static constexpr uint32_t kBuffer = kBlocks * kShare, kGates = 2 * kBuffer;
  static constexpr uint32_t kRow = 4 * kSlstmBlockUnits * 2 + 16;
  static constexpr uint32_t kBarriers = kGates + 2 * kSlstmSequences * kRow;
  static constexpr uint32_t kShared = kBarriers + 2 * sizeof(uint64_t);
};

template <int kBlocks>
__global__ void __launch_bounds__(kSlstmThreads, 1) BackwardKernel(const View view) {
#if __CUDA_ARCH__ >= 900
  using S = BackwardShape<kBlocks>;
  constexpr int kTiles = kBlocks < 4 ? 1 : kBlocks / 4;  // of 16 units, of a warp that has any
  constexpr int kSteps = 4 * kSlstmBlockUnits / 16;
  extern __shared__ __align__(128) unsigned char shared[];
  const SlstmSizes& sizes = view.sizes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rank = ClusterRank(), head = static_cast<int>(blockIdx.x) / kBlocks;
  const int first_sequence = static_cast<int>(blockIdx.y) * kSlstmSequences;
  const int first_unit = rank * kSlstmBlockUnits;

  // Row i of a tile of r, i < 8, is that of its unit 2 i, and row i + 8 that of unit 2 i + 1: of
  // an accumulator's four elements two are one unit's in two sequences.
  uint32_t r[kTiles][kSteps][4];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int from = (warp * kTiles + tile) * 16 + lane / 4 * 2 + i % 2;
        const int column = step * 16 + lane % 4 * 2 + i / 2 * 8;
        const int gate = column / kSlstmBlockUnits, unit = first_unit + column % kSlstmBlockUnits;
        r[tile][step][i] = 0;
        if (from >= sizes.units || unit >= sizes.units) continue;  // d is even
        const Bf16* pair = view.r + sizes.RecurrentAt(head, from, gate, unit);
        r[tile][step][i] = PackSlstm(pair[0], pair[1]);
      }
    }
  }

  // The cells of a thread: one unit in two sequences. Two warps share the accumulators of one
  // fragment, 16 lanes' each, and two threads those of a lane.
  const int fragment = warp / 2, holder = warp % 2 * 16 + lane / 2;
  const int own_unit = fragment / 2 * 16 + holder / 4 * 2 + lane % 2, unit = first_unit + own_unit;
  const int own_sequence = fragment % 2 * 8 + holder % 4 * 2;
  const uint32_t own_share = fragment * S::kFragment + holder * sizeof(float4) + lane % 2 * 8;
  int sequence[2];
  bool exists[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    sequence[e] = first_sequence + own_sequence + e;
    exists[e] = unit < sizes.units && sequence[e] < sizes.batch;
  }

  // What a token brings, loaded while the one after it is computed: gates, the gradient of y, and
  // what c and n were after the token before. Where there is no cell, numbers that stay finite.
  struct Token {
    SlstmGates gates;
    float slope, dy, c_previous, n_previous;
    bool starts;
  };
  Token next[2];
  const auto load = [&](int t) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      next[e] = {{0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, 0.0f, 0.0f, 1.0f, false};
      const int b = sequence[e];
      // Units that only fill up the block forget too: see the forward kernel.
      next[e].starts = b < sizes.batch && view.Starts(b, t);
      if (!exists[e]) continue;
      const auto gate = [&](int g) { return view.gates[sizes.GateAt(b, t, head, g, unit)]; };
      const int64_t at = sizes.At(b, t, head, unit);
      next[e].gates = {gate(0), gate(1), gate(2), gate(3)};
      next[e].slope = view.slope[at];
      next[e].dy = __bfloat162float(view.dy[at]);
      if (t > 0) {
        const int64_t previous = sizes.At(b, t - 1, head, unit);
        next[e].c_previous = view.c[previous];
        next[e].n_previous = view.n[previous];
      } else {
        const bool given = view.before.c != nullptr;
        const int64_t state = sizes.StateAt(b, head, unit);
        next[e].c_previous = given ? view.before.c[state] : 0.0f;
        next[e].n_previous = given ? view.before.n[state] : 0.0f;
      }
    }
  };
  // Of each cell: c and n after the token, and the gradients of them and of y by way of later ones.
  float c[2], n[2], dc[2] = {}, dn[2] = {}, dy_next[2] = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    c[e] = 0.0f;
    n[e] = 1.0f;
    if (!exists[e]) continue;
    const int64_t at = sizes.At(sequence[e], sizes.tokens - 1, head, unit);
    c[e] = view.c[at];
    n[e] = view.n[at];
    if (view.dafter.y == nullptr) continue;
    const int64_t state = sizes.StateAt(sequence[e], head, unit);
    dy_next[e] = view.dafter.y[state];
    dc[e] = view.dafter.c[state];
    dn[e] = view.dafter.n[state];
  }
  load(sizes.tokens - 1);

  const LaneChunk in_b = LaneOfB(lane);
  const uint32_t memory = SharedAddress(shared);
  const uint32_t b_lane = in_b.row * S::kRow + in_b.chunk * 16;
  if (thread < 2) FillBarrier::Init(memory + S::kBarriers + thread * 8);
  ClusterBarrier();  // all blocks are there, with their barriers
  for (int step = 0; step < sizes.tokens; ++step) {
    const int t = sizes.tokens - 1 - step, turn = step % 2;
    const uint32_t gates = S::kGates + turn * kSlstmSequences * S::kRow;
    const uint32_t buffer = turn * S::kBuffer, barrier = memory + S::kBarriers + turn * 8;
    if (kBlocks > 1 && thread == 0) FillBarrier::Arm(barrier, S::kBuffer);
    const Token token[2] = {next[0], next[1]};
    if (t > 0) load(t - 1);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float c_before = token[e].starts ? 0.0f : token[e].c_previous;
      const float n_before = token[e].starts ? 0.0f : token[e].n_previous;
      float dp[4];
      SlstmGradStep(token[e].gates, token[e].slope, c_before, n_before, c[e], n[e],
                    token[e].dy + dy_next[e], dc[e], dn[e], dp);
      c[e] = token[e].c_previous;
      n[e] = token[e].n_previous;
      Bf16* row = reinterpret_cast<Bf16*>(shared + gates + (own_sequence + e) * S::kRow);
#pragma unroll
      for (int g = 0; g < 4; ++g) row[g * kSlstmBlockUnits + own_unit] = __float2bfloat16_rn(dp[g]);
    }
    __syncthreads();

    if (warp * kTiles < 2 * kBlocks) {
      float shares[kTiles][2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t right[4];
        LoadMatrices(right, memory + gates + b_lane + k * 32);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          Mma(shares[tile][0], r[tile][k], right[0], right[1]);
          Mma(shares[tile][1], r[tile][k], right[2], right[3]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int all = warp * kTiles + tile, owner = all / 2;
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          const float(&values)[4] = shares[tile][group];
          const uint4 bits = make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                                        __float_as_uint(values[2]), __float_as_uint(values[3]));
          const uint32_t at = buffer + rank * S::kShare + (all % 2 * 2 + group) * S::kFragment +
                              lane * sizeof(float4);
          if constexpr (kBlocks == 1) {
            *reinterpret_cast<uint4*>(shared + at) = bits;
          } else {
            StoreRemote(memory + at, barrier, owner, bits);
          }
        }
      }
    }
    {  // to memory: 16 rows of 4 gates of four vectors
      const int row = thread / 16, gate = thread % 16 / 4, chunk = thread % 4;
      const int b = first_sequence + row, u = first_unit + chunk * 8;
      if (b < sizes.batch && u < sizes.units) {
        *reinterpret_cast<uint4*>(view.dx + sizes.GateAt(b, t, head, gate, u)) =
            *reinterpret_cast<const uint4*>(shared + gates + row * S::kRow +
                                            gate * kSlstmBlockUnits * 2 + chunk * 16);
      }
    }

    // Nobody writes into this buffer again before having shares of the next step from all blocks,
    // who then have read it.
    if constexpr (kBlocks == 1) {
      __syncthreads();
    } else {
      WaitForPhase(barrier, step / 2 % 2);
    }
    float sum[2] = {};
#pragma unroll
    for (int from = 0; from < kBlocks; ++from) {
      const float2 share =
          *reinterpret_cast<const float2*>(shared + buffer + from * S::kShare + own_share);
      sum[0] += share.x;
      sum[1] += share.y;
    }
    // Nothing crosses a document start.
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      dy_next[e] = token[e].starts ? 0.0f : sum[e];
      if (token[e].starts) dc[e] = dn[e] = 0.0f;
    }
  }
  ClusterBarrier();  // until then others may reach this block's memory

#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (!exists[e] || view.dbefore.y == nullptr) continue;
    const int64_t state = sizes.StateAt(sequence[e], head, unit);
    view.dbefore.y[state] = dy_next[e];
    view.dbefore.c[state] = dc[e];
    view.dbefore.n[state] = dn[e];
  }
#else
  __trap();
#endif
}

template <int kBlocks>
struct Body {
  static constexpr auto kKernel = BackwardKernel<kBlocks>;
  static constexpr size_t kShared = BackwardShape<kBlocks>::kShared;
};

}  // namespace

bool SlstmFitsCluster(const View& view) { return SlstmFits<Body>(view, view.dx); }
void SlstmBackwardCluster(const View& view) { SlstmRun<Body>("SlstmBackward", view); }

}  // namespace eyrie
