// The sLSTM forward on the tensor cores, as one kernel over all tokens, in the manner of FlashRNN's
// fused kernels (arXiv:2412.07752). A cluster of blocks takes one head of 16 sequences; a block has
// 32 of the head's units. It keeps their columns of r in registers, as operand A of
//
//   sums [4 gates of 32 units, 16 sequences] = r^T y_{t-1}
//
// and after each token writes the units' y into every block's shared memory, 16 sequences by all
// units, operand B of the next one. Warps 2 k and 2 k + 1 have units 8 k to 8 k + 7; each
// multiplies one half of the inner index, and finishes 8 of the sequences.
#include "kernels/slstm/slstm_kernels.cuh"
#include "kernels/slstm/slstm_tiles.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;
using View = SlstmForwardView<Bf16>;

template <int kBlocks>
struct ForwardShape {
  static constexpr int kUnits = kBlocks * kSlstmBlockUnits;  // of a head, those beyond it zeros
  // Rows lie 16 bytes off a multiple of 32: eight of them are in different banks.
  static constexpr uint32_t kRow = kUnits * 2 + 16, kBuffer = kSlstmSequences * kRow;
  // Two buffers of y, then what warps of a pair give each other, then the buffers' barriers.
  static constexpr uint32_t kShares = 2 * kBuffer;
  static constexpr uint32_t kBarriers = kShares + kSlstmThreads * 2 * sizeof(float4);
  static constexpr uint32_t kShared = kBarriers + 2 * sizeof(uint64_t);
};

template <int kBlocks>
__global__ void __launch_bounds__(kSlstmThreads, 1) ForwardKernel(const View view) {
#if __CUDA_ARCH__ >= 900
  using S = ForwardShape<kBlocks>;
  constexpr int kSteps = kBlocks;  // of 16 units, in one half of the inner index
  // What the other blocks write into a buffer for a token.
  constexpr uint32_t kFill = (kBlocks - 1) * kSlstmSequences * kSlstmBlockUnits * 2;
  extern __shared__ __align__(128) unsigned char shared[];
  const SlstmSizes& sizes = view.sizes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int pair = warp / 2, half = warp % 2;
  const int rank = ClusterRank(), head = static_cast<int>(blockIdx.x) / kBlocks;
  const int first_sequence = static_cast<int>(blockIdx.y) * kSlstmSequences;
  const int first_unit = rank * kSlstmBlockUnits;
  // This thread's unit, and its two sequences.
  const int own_unit = 8 * pair + lane / 4, unit = first_unit + own_unit;
  const int own_sequence = 8 * half + lane % 4 * 2;
  int sequence[2];
  bool exists[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    sequence[e] = first_sequence + own_sequence + e;
    exists[e] = unit < sizes.units && sequence[e] < sizes.batch;
  }

  // Rows of operand A: i, then f of the pair's units in one tile of 16, z and o in another.
  uint32_t r[2][kSteps][4];
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int gate = 2 * tile + i % 2;
        const int from = (half * kSteps + step) * 16 + lane % 4 * 2 + i / 2 * 8;
        r[tile][step][i] = 0;
        if (unit >= sizes.units || from >= sizes.units) continue;  // d is even
        const Bf16 low = view.r[sizes.RecurrentAt(head, from, gate, unit)];
        const Bf16 high = view.r[sizes.RecurrentAt(head, from + 1, gate, unit)];
        r[tile][step][i] = PackSlstm(low, high);
      }
    }
  }

  for (int i = thread; i < kSlstmSequences * S::kUnits; i += kSlstmThreads) {
    const int row = i / S::kUnits, u = i % S::kUnits, b = first_sequence + row;
    const bool given = view.before.y != nullptr && b < sizes.batch && u < sizes.units;
    const float y = given ? view.before.y[sizes.StateAt(b, head, u)] : 0.0f;
    *reinterpret_cast<Bf16*>(shared + row * S::kRow + u * 2) = __float2bfloat16_rn(y);
  }
  SlstmCell cells[2] = {};
  float bias[4] = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (!exists[e]) continue;
    const int64_t at = sizes.StateAt(sequence[e], head, unit);
    if (view.before.y != nullptr) {
      cells[e] = {view.before.c[at], view.before.n[at], view.before.m[at]};
    }
#pragma unroll
    for (int g = 0; g < 4; ++g) bias[g] = view.bias[(head * 4 + g) * sizes.units + unit];
  }

  // What a token brings, loaded while the one before it is computed.
  Bf16 x[2][4];
  bool starts[2];
  const auto load = [&](int t) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      // Units that only fill up the block forget too: what they hold meets zeros of r, but a NaN
      // would stay one.
      starts[e] = sequence[e] < sizes.batch && view.Starts(sequence[e], t);
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        x[e][g] = exists[e] ? view.x[sizes.GateAt(sequence[e], t, head, g, unit)]
                            : __float2bfloat16_rn(0.0f);
      }
    }
  };
  load(0);
  const LaneChunk in_b = LaneOfB(lane);
  const uint32_t memory = SharedAddress(shared);
  const uint32_t b_lane = in_b.row * S::kRow + in_b.chunk * 16 + half * kSteps * 32;
  float4* shares = reinterpret_cast<float4*>(shared + S::kShares);
  const auto barrier = [&](int t) { return memory + S::kBarriers + t % 2 * 8; };
  if (thread < 2) FillBarrier::Init(barrier(thread));
  float y[2];

  // All blocks are there, with their barriers and y before the first token.
  ClusterBarrier();
  for (int t = 0; t < sizes.tokens; ++t) {
    // Token t reads buffer t % 2, filled for the first time before tokens 1 and 2. Nobody writes
    // into the other one before having y of this token from all blocks, who then have read it.
    if (t > 0) WaitForPhase(barrier(t), (t - 1) / 2 % 2);
    if (thread == 0 && t + 1 < sizes.tokens) FillBarrier::Arm(barrier(t + 1), kFill);
    float p[2][4];
    bool fresh[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      fresh[e] = starts[e];
#pragma unroll
      for (int g = 0; g < 4; ++g) p[e][g] = __bfloat162float(x[e][g]) + bias[g];
    }
    if (t + 1 < sizes.tokens) load(t + 1);

    const uint32_t from = memory + t % 2 * S::kBuffer + b_lane;
    float sums[2][2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t right[4];
      LoadMatrices(right, from + step * 32);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        Mma(sums[tile][0], r[tile][step], right[0], right[1]);
        Mma(sums[tile][1], r[tile][step], right[2], right[3]);
      }
    }
    // The other warp gets the sums of its sequences, in return for those of one's own.
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const float(&low)[4] = sums[tile][0], (&high)[4] = sums[tile][1];
      shares[(warp * 2 + tile) * 32 + lane] = half == 0
                                                  ? make_float4(high[0], high[1], high[2], high[3])
                                                  : make_float4(low[0], low[1], low[2], low[3]);
    }
    PairBarrier(pair);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const float4 theirs = shares[((warp ^ 1) * 2 + tile) * 32 + lane];
      const float other[4] = {theirs.x, theirs.y, theirs.z, theirs.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float sum = (half == 0 ? sums[tile][0][i] : sums[tile][1][i]) + other[i];
        // At a document start the sum may be anything, even NaN, and does not count.
        if (!fresh[i % 2]) p[i % 2][2 * tile + i / 2] += sum;
      }
    }

    const uint32_t next = (t + 1) % 2 * S::kBuffer;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (fresh[e]) cells[e] = {};
      const SlstmGates gates = SlstmStep(view.exponential_forget, p[e], cells[e]);
      const Bf16 rounded = __float2bfloat16_rn(gates.o * cells[e].c / cells[e].n);
      y[e] = __bfloat162float(rounded);
      *reinterpret_cast<Bf16*>(shared + next + (own_sequence + e) * S::kRow + unit * 2) = rounded;
    }
    __syncthreads();

    // The block's y are 16 rows of four vectors: to the other blocks, and to memory.
    const int row = thread % 64 / 4, chunk = thread % 4;
    const uint32_t offset = next + row * S::kRow + first_unit * 2 + chunk * 16;
    const uint4 vector = *reinterpret_cast<const uint4*>(shared + offset);
    if (t + 1 < sizes.tokens) {
      for (int to = thread / 64; to < kBlocks; to += kSlstmThreads / 64) {
        if (to != rank) StoreRemote(memory + offset, barrier(t + 1), to, vector);
      }
    }
    const int b = first_sequence + row, u = first_unit + chunk * 8;
    if (thread < 64 && b < sizes.batch && u < sizes.units) {
      *reinterpret_cast<uint4*>(view.y + sizes.At(b, t, head, u)) = vector;
    }
  }
  ClusterBarrier();  // until then others may reach this block's memory

#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (!exists[e] || view.after.y == nullptr) continue;
    const int64_t at = sizes.StateAt(sequence[e], head, unit);
    view.after.y[at] = y[e];
    view.after.c[at] = cells[e].c;
    view.after.n[at] = cells[e].n;
    view.after.m[at] = cells[e].m;
  }
#else
  __trap();
#endif
}

template <int kBlocks>
struct Body {
  static constexpr auto kKernel = ForwardKernel<kBlocks>;
  static constexpr size_t kShared = ForwardShape<kBlocks>::kShared;
};

}  // namespace

bool SlstmFitsCluster(const View& view) { return SlstmFits<Body>(view, view.y); }
void SlstmForwardCluster(const View& view) { SlstmRun<Body>("SlstmForward", view); }

}  // namespace eyrie
