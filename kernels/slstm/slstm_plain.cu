// The sLSTM in plain float32 arithmetic, a launch for each token: for float32, and for heads that
// no cluster of blocks can hold. Each launch reads r once for 8 sequences, from the L2 cache where
// it fits there. A block computes 32 units of a head in 8 sequences.
#include "kernels/slstm/slstm_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kUnits = 32, kSequences = 8, kThreads = kUnits * kSequences;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = 256;  // of the inner index, in shared memory at once

// The cell of a thread: lane and warp are its unit and its sequence.
struct Place {
  explicit __device__ Place(const SlstmSizes& sizes)
      : lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32),
        head(static_cast<int>(blockIdx.y)),
        first_unit(static_cast<int>(blockIdx.x) * kUnits),
        first_sequence(static_cast<int>(blockIdx.z) * kSequences),
        unit(first_unit + lane),
        sequence(first_sequence + warp),
        exists(unit < sizes.units && sequence < sizes.batch),
        state(sizes.StateAt(sequence, head, unit)) {}
  int lane, warp, head, first_unit, first_sequence, unit, sequence;
  bool exists;
  int64_t state;  // of the cell, in a state
};

dim3 GridOf(const SlstmSizes& sizes) {
  return {Pieces(sizes.units, kUnits), static_cast<unsigned>(sizes.heads),
          Pieces(sizes.batch, kSequences)};
}

// Each warp has a part of the inner index, and all of the block's units and sequences.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(const SlstmForwardView<T> view, const int t) {
  __shared__ float ys[kSequences][kChunk];
  __shared__ float sums[kWarps][4][kSequences][kUnits];
  const SlstmSizes& sizes = view.sizes;
  const Place at(sizes);

  float sum[4][kSequences] = {};
  for (int begin = 0; begin < sizes.units; begin += kChunk) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSequences * kChunk; i += kThreads) {
      const int row = i / kChunk, u = begin + i % kChunk, b = at.first_sequence + row;
      float y = 0.0f;
      if (b < sizes.batch && u < sizes.units && !view.Starts(b, t)) {
        if (t > 0) {
          y = ToFloat(view.y[sizes.At(b, t - 1, at.head, u)]);
        } else if (view.before.y != nullptr) {
          y = ToFloat(FromFloat<T>(view.before.y[sizes.StateAt(b, at.head, u)]));
        }
      }
      ys[row][i % kChunk] = y;
    }
    __syncthreads();
    if (at.unit >= sizes.units) continue;
    for (int i = at.warp; i < min(kChunk, sizes.units - begin); i += kWarps) {
      const T* r = view.r + sizes.RecurrentAt(at.head, begin + i, 0, at.unit);
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        const float factor = ToFloat(r[g * sizes.units]);
#pragma unroll
        for (int b = 0; b < kSequences; ++b) sum[g][b] = fmaf(ys[b][i], factor, sum[g][b]);
      }
    }
  }
#pragma unroll
  for (int g = 0; g < 4; ++g) {
#pragma unroll
    for (int b = 0; b < kSequences; ++b) sums[at.warp][g][b][at.lane] = sum[g][b];
  }
  __syncthreads();
  if (!at.exists) return;

  float p[4];
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    p[g] = ToFloat(view.x[sizes.GateAt(at.sequence, t, at.head, g, at.unit)]) +
           view.bias[(at.head * 4 + g) * sizes.units + at.unit];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) p[g] += sums[warp][g][at.warp][at.lane];
  }
  const int64_t states = int64_t{sizes.batch} * sizes.heads * sizes.units;
  float* kept = view.cells + at.state;
  SlstmCell cell{};
  if (!view.Starts(at.sequence, t)) {
    if (t > 0) {
      cell = {kept[0], kept[states], kept[2 * states]};
    } else if (view.before.y != nullptr) {
      cell = {view.before.c[at.state], view.before.n[at.state], view.before.m[at.state]};
    }
  }
  const SlstmGates gates = SlstmStep(view.exponential_forget, p, cell);
  const T y = FromFloat<T>(gates.o * cell.c / cell.n);
  view.y[sizes.At(at.sequence, t, at.head, at.unit)] = y;
  kept[0] = cell.c;
  kept[states] = cell.n;
  kept[2 * states] = cell.m;
  if (t + 1 < sizes.tokens || view.after.y == nullptr) return;
  view.after.y[at.state] = ToFloat(y);
  view.after.c[at.state] = cell.c;
  view.after.n[at.state] = cell.n;
  view.after.m[at.state] = cell.m;
}

// Token t, or, for t = -1, only what goes to the state before the first token. Each warp takes
// every eighth of the block's units, its lanes the gates that these lead to.
template <class T>
__global__ void __launch_bounds__(kThreads)
    BackwardKernel(const SlstmBackwardView<T> view, const int t) {
  constexpr int kRows = kUnits / kWarps;
  __shared__ float dps[kSequences][kChunk];
  __shared__ float sums[kSequences][kUnits + 1];
  const SlstmSizes& sizes = view.sizes;
  const Place at(sizes);
  const bool last = t + 1 == sizes.tokens;

  if (!last) {  // sums = r dp of the next token, none where a document starts there
    float sum[kRows][kSequences] = {};
    const int inner = 4 * sizes.units;
    for (int begin = 0; begin < inner; begin += kChunk) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kSequences * kChunk; i += kThreads) {
        const int row = i / kChunk, k = begin + i % kChunk, b = at.first_sequence + row;
        const bool crosses = b < sizes.batch && k < inner && !view.Starts(b, t + 1);
        dps[row][i % kChunk] =
            crosses ? ToFloat(view.dx[sizes.GateAt(b, t + 1, at.head, 0, 0) + k]) : 0.0f;
      }
      __syncthreads();
      for (int i = at.lane; i < min(kChunk, inner - begin); i += 32) {
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const int from = at.first_unit + row * kWarps + at.warp;
          if (from >= sizes.units) continue;
          const float factor = ToFloat(view.r[sizes.RecurrentAt(at.head, from, 0, 0) + begin + i]);
#pragma unroll
          for (int b = 0; b < kSequences; ++b) sum[row][b] = fmaf(dps[b][i], factor, sum[row][b]);
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int b = 0; b < kSequences; ++b) {
        const float total = WarpSum(sum[row][b]);
        if (at.lane == 0) sums[b][row * kWarps + at.warp] = total;
      }
    }
    __syncthreads();
  }
  if (!at.exists) return;

  const int64_t states = int64_t{sizes.batch} * sizes.heads * sizes.units;
  float* kept = view.carry + at.state;
  float dy = 0.0f, dc = 0.0f, dn = 0.0f;
  if (!last) {
    dy = sums[at.warp][at.lane];
    dc = kept[0];
    dn = kept[states];
  } else if (view.dafter.y != nullptr) {
    dy = view.dafter.y[at.state];
    dc = view.dafter.c[at.state];
    dn = view.dafter.n[at.state];
  }
  if (t < 0) {
    view.dbefore.y[at.state] = dy;
    view.dbefore.c[at.state] = dc;
    view.dbefore.n[at.state] = dn;
    return;
  }
  const bool starts = view.Starts(at.sequence, t);
  float c_before = 0.0f, n_before = 0.0f;
  if (!starts && t > 0) {
    const int64_t previous = sizes.At(at.sequence, t - 1, at.head, at.unit);
    c_before = view.c[previous];
    n_before = view.n[previous];
  } else if (!starts && view.before.c != nullptr) {
    c_before = view.before.c[at.state];
    n_before = view.before.n[at.state];
  }
  const auto gate = [&](int g) { return sizes.GateAt(at.sequence, t, at.head, g, at.unit); };
  const int64_t here = sizes.At(at.sequence, t, at.head, at.unit);
  const SlstmGates gates{view.gates[gate(0)], view.gates[gate(1)], view.gates[gate(2)],
                         view.gates[gate(3)]};
  float dp[4];
  SlstmGradStep(gates, view.slope[here], c_before, n_before, view.c[here], view.n[here],
                dy + ToFloat(view.dy[here]), dc, dn, dp);
#pragma unroll
  for (int g = 0; g < 4; ++g) view.dx[gate(g)] = FromFloat<T>(dp[g]);
  kept[0] = starts ? 0.0f : dc;
  kept[states] = starts ? 0.0f : dn;
}

}  // namespace

template <class T>
void SlstmForwardPlain(const SlstmForwardView<T>& view) {
  for (int t = 0; t < view.sizes.tokens; ++t) {
    Launch("SlstmForward", ForwardKernel<T>, GridOf(view.sizes), dim3(kThreads), 0, view, t);
  }
}

template <class T>
void SlstmBackwardPlain(const SlstmBackwardView<T>& view) {
  const int end = view.dbefore.y != nullptr ? -1 : 0;
  for (int t = view.sizes.tokens - 1; t >= end; --t) {
    Launch("SlstmBackward", BackwardKernel<T>, GridOf(view.sizes), dim3(kThreads), 0, view, t);
  }
}

template void SlstmForwardPlain(const SlstmForwardView<float>&);
template void SlstmForwardPlain(const SlstmForwardView<__nv_bfloat16>&);
template void SlstmBackwardPlain(const SlstmBackwardView<float>&);
template void SlstmBackwardPlain(const SlstmBackwardView<__nv_bfloat16>&);

}  // namespace eyrie
