// CUDA bodies of the RG-LRU's summaries. They need no state, only the composition of all tokens'
// maps, so nothing waits: a warp composes the maps of its own tokens, a lane two channels, and the
// results are composed in order, by a block and then by a second kernel.
// B sequences, T tokens, R channels. "Scan order" is along time, and against it for gradients.
#include "core/round.h"
#include "kernels/rg_lru/rg_lru_cuda.h"
#include "kernels/rg_lru/rg_lru_scan.cuh"

namespace eyrie {
namespace rg_lru {
namespace {

template <class T>
struct SummaryTensors {
  const T *u, *zi;  // forward only
  const T* zr;
  const float* lambda;
  const int* positions;
  const T* dh;     // backward only
  Affine* pieces;  // [pieces, columns]
};

// Channels c and c + 1 of a row, as far as they exist; with kVectors, both must.
template <bool kVectors, class T>
__device__ __forceinline__ Vector<T, 2> LoadPair(const T* row, int c, int count) {
  if constexpr (kVectors) return LoadVector<2>(row + c);
  Vector<T, 2> pair;
  pair.Set(0, c < count ? ToFloat(row[c]) : 0);
  pair.Set(1, c + 1 < count ? ToFloat(row[c + 1]) : 0);
  return pair;
}

template <class T, bool kBackward, bool kVectors>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 2)
    PieceKernel(Plan plan, int tokens, SummaryTensors<T> tensors) {
  __shared__ Affine maps[kWarps][kColumns];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = 2 * lane;
  const Tile tile = Tile::Number<false>(plan, blockIdx.x);
  const int count = tile.count(plan);
  // A lane without channels takes the tile's first two, and its result is not used.
  const int from = kVectors && c >= count ? 0 : c;
  float rate[2];
  for (int v = 0; v < 2; ++v) {
    rate[v] = c + v < count ? Rate(tensors.lambda, tile.channel + c + v) : 0;
  }

  // This warp's tokens in scan order.
  const int begin = blockIdx.y * tokens + warp * (tokens / kWarps);
  const int end = min(plan.time, begin + tokens / kWarps);
  const int* positions = tensors.positions + int64_t{tile.b} * plan.time;
  constexpr int kDirection = kBackward ? -1 : 1;
  Affine total[2] = {{1, 0}, {1, 0}};
#pragma unroll 1
  for (int first = begin; first < end; first += kSteps) {
    Vector<T, 2> u[kSteps], zi[kSteps], zr[kSteps], dh[kSteps];
    const int t = kBackward ? plan.time - 1 - first : first;
    const int64_t offset = tile.Offset(plan, t);
    // Past the end the last token is read again, and not used.
    const int last = end - 1 - first;
    const int own = lane % kSteps;  // this lane watches one position
    const int position = own <= last ? positions[t + kDirection * own] : -1;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int64_t row = offset + kDirection * min(step, last) * plan.channels;
      zr[step] = LoadPair<kVectors>(tensors.zr + row, from, count);
      if constexpr (kBackward) {
        dh[step] = LoadPair<kVectors>(tensors.dh + row, from, count);
      } else {
        u[step] = LoadPair<kVectors>(tensors.u + row, from, count);
        zi[step] = LoadPair<kVectors>(tensors.zi + row, from, count);
      }
    }
    WithConstant(__all_sync(~0u, position > 0), [&](auto constant) {
      constexpr bool kInside = decltype(constant)::value;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int at = kInside ? 1 : __shfl_sync(~0u, position, step);
        if (!kInside && step > last) break;
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          Affine token;
          if constexpr (kBackward) {
            const float e = DecayMinusOne(rate[v] * Sigmoid(zr[step][v]));
            token = TokenGradMap<kInside>(dh[step][v], e, at);
          } else {
            token = TokenMap<kInside>(u[step][v], zi[step][v], zr[step][v], rate[v], at);
          }
          total[v] = Then<kInside>(total[v], token);
        }
      }
    });
  }
  for (int v = 0; v < 2; ++v) maps[warp][c + v] = total[v];
  __syncthreads();
  if (threadIdx.x >= kColumns) return;
  Affine piece = maps[0][threadIdx.x];
  for (int w = 1; w < kWarps; ++w) piece = Then(piece, maps[w][threadIdx.x]);
  tensors.pieces[blockIdx.y * plan.columns() + tile.column + threadIdx.x] = piece;
}

// Composes the pieces of each column, in order: eight threads a column take neighbouring pieces.
__global__ void ComposeKernel(Plan plan, int count, const Affine* pieces, float* decay,
                              float* increment) {
  __shared__ Affine maps[kWarps][32];
  const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const int share = CeilDiv(count, kWarps);
  const int begin = threadIdx.y * share, end = min(count, begin + share);
  Affine total{1, 0};
#pragma unroll 4
  for (int i = begin; i < end; ++i) total = Then(total, pieces[i * plan.columns() + column]);
  maps[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y > 0) return;
  for (int w = 1; w < kWarps; ++w) total = Then(total, maps[w][threadIdx.x]);
  const int width = plan.width();
  const int b = static_cast<int>(column / width), channel = static_cast<int>(column % width);
  if (channel >= plan.channels) return;
  decay[int64_t{b} * plan.channels + channel] = total.a;
  increment[int64_t{b} * plan.channels + channel] = total.x;
}

template <bool kBackward, class T>
void Summarize(const char* name, const Plan& plan, const SummaryTensors<T>& tensors,
               const Tensor& decay, const Tensor& increment) {
  const SummaryPieces pieces(plan);
  const bool vectors =
      AllFitVectors<T>(plan.channels, {tensors.u, tensors.zi, tensors.zr, tensors.dh});
  const dim3 grid(static_cast<unsigned>(plan.batch * plan.blocks),
                  static_cast<unsigned>(pieces.count));
  Launch(name, vectors ? PieceKernel<T, kBackward, true> : PieceKernel<T, kBackward, false>, grid,
         dim3(kThreads), 0, plan, pieces.tokens, tensors);
  Launch(name, ComposeKernel, dim3(static_cast<unsigned>(plan.columns() / 32)), dim3(32, kWarps), 0,
         plan, pieces.count, tensors.pieces, decay.data<float>(), increment.data<float>());
}

}  // namespace
}  // namespace rg_lru

void RgLruSummaryCuda(const RgLruSummaryArgs& args) {
  using namespace rg_lru;
  DispatchCuda("RgLruSummary", args.u, [&]<class T>(T) {
    Summarize<false, T>("RgLruSummary", Plan(args.u.shape),
                        {.u = args.u.data<T>(),
                         .zi = args.zi.data<T>(),
                         .zr = args.zr.data<T>(),
                         .lambda = args.lambda.data<float>(),
                         .positions = args.positions.data<int>(),
                         .dh = nullptr,
                         .pieces = reinterpret_cast<Affine*>(args.workspace.data<float>())},
                        args.decay, args.increment);
  });
}

void RgLruGradSummaryCuda(const RgLruGradSummaryArgs& args) {
  using namespace rg_lru;
  DispatchCuda("RgLruGradSummary", args.dh, [&]<class T>(T) {
    Summarize<true, T>("RgLruGradSummary", Plan(args.dh.shape),
                       {.u = nullptr,
                        .zi = nullptr,
                        .zr = args.zr.data<T>(),
                        .lambda = args.lambda.data<float>(),
                        .positions = args.positions.data<int>(),
                        .dh = args.dh.data<T>(),
                        .pieces = reinterpret_cast<Affine*>(args.workspace.data<float>())},
                       args.decay, args.increment);
  });
}

}  // namespace eyrie
