// CUDA bodies of the RG-LRU's two passes. rg_lru_scan.cuh says how a block works; here is what each
// phase does with a tile. B sequences, T tokens, R channels.
#include "kernels/rg_lru/rg_lru_cuda.h"
#include "kernels/rg_lru/rg_lru_scan.cuh"
#include "kernels/row_sum.cuh"

namespace eyrie {
namespace rg_lru {
namespace {

// ---- Forward: h = a h + m i u. ----

template <class T>
struct ForwardTensors {
  const T *u, *zi, *zr;
  const float* lambda;
  const int* positions;
  const float* h0;
  T* h;
  float* h_last;
};

constexpr int kForwardStages = 2;

template <class T>
struct ForwardShared {
  struct Inputs {
    T u[kRows][kColumns], zi[kRows][kColumns], zr[kRows][kColumns];
    TileFacts facts;
  } inputs[kForwardStages];
  Affine maps[kWarps][kColumns];
  Tile tiles[kForwardStages + 1];
};

// Four blocks fit a multiprocessor in bfloat16: 64 registers a thread, 55 KiB a block.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 2)
    ForwardKernel(Plan plan, Board board, ForwardTensors<T> tensors) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<T>*>(memory);
  const int warp = threadIdx.x / 32, c = 2 * (threadIdx.x % 32);
  Affine tokens[kSteps][2];
  bool inside = false;  // a document, all the warp's tokens

  const auto load = [&](int stage, const Tile& tile, int loader) {
    auto& in = shared.inputs[stage];
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.zr, in.zr);
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.zi, in.zi);
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.u, in.u);
    LoadFacts(plan, tile, loader, tensors.lambda, tensors.positions, in.facts);
  };
  const auto map = [&](int stage, const Tile&) {
    const auto& in = shared.inputs[stage];
    const auto rate = LoadVector<2>(&in.facts.rate[c]);
    Affine total[2];
    inside = AllInside(in.facts, warp * kSteps);
    WithConstant(inside, [&](auto constant) {
      constexpr bool kInside = decltype(constant)::value;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int row = warp * kSteps + step, position = kInside ? 1 : in.facts.positions[row];
        const auto u = LoadVector<2>(&in.u[row][c]);
        const auto zi = LoadVector<2>(&in.zi[row][c]), zr = LoadVector<2>(&in.zr[row][c]);
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const Affine token = TokenMap<kInside>(u[v], zi[v], zr[v], rate[v], position);
          total[v] = step == 0 ? token : Then<kInside>(total[v], token);
          tokens[step][v] = token;
        }
      }
    });
    for (int v = 0; v < 2; ++v) shared.maps[warp][c + v] = total[v];
  };
  const auto link = [&](int, const Tile& tile) {
    Link(plan, board, tile, shared.maps, tensors.h0, tensors.h_last);
  };
  const auto finish = [&](int, const Tile& tile) {
    const int count = tile.count(plan), first = tile.t + warp * kSteps;
    if (c >= count) return;
    T* h = tensors.h + tile.Offset(plan, first);
    float state[2] = {shared.maps[warp][c].x, shared.maps[warp][c + 1].x};
    WithConstant(inside, [&](auto constant) {
      constexpr bool kInside = decltype(constant)::value;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        for (int v = 0; v < 2; ++v) state[v] = Apply<kInside>(tokens[step][v], state[v]);
        if (kInside || first + step < plan.time) StorePair<kVectors>(h, c, count, state);
        h += plan.channels;
      }
    });
  };
  ForTiles<false>(plan, board, shared.tiles, load, map, link, finish);
}

// ---- Backward: delta_t = dh_t + a_{t+1} delta_{t+1}, against time. ----

template <class T>
struct BackwardTensors {
  const T *u, *zi, *zr;
  const float* lambda;
  const int* positions;
  const float* h0;
  const T *h, *dh;
  const float* dh_last;
  T *du, *dzi, *dzr;
  float* dh0;
  float* sums;  // [orders, B, kSums, blocks of 64 channels] over a tile's tokens: r dl, dzi, dzr
};

// One stage: the gradients need all inputs again in the last phase. The other blocks of the
// multiprocessor compute while one loads.
template <class T>
struct BackwardShared {
  T u[kRows][kColumns], zi[kRows][kColumns], zr[kRows][kColumns], dh[kRows][kColumns];
  T before[kRows][kColumns];  // h of the token before
  TileFacts facts;
  Affine maps[kWarps][kColumns];  // by order of the scan: warp 0 has the last tokens
  float sums[kSums][kWarps][kColumns];
  Tile tiles[2];
};

// The gradients of one token.
struct TokenGrads {
  float du, dzi, dzr;
  float decay;  // r dl
};
__device__ __forceinline__ TokenGrads GradsAtStart(float delta, float u, float zi) {
  const float i = Sigmoid(zi);
  return {delta * i, delta * u * i * (1 - i), 0, 0};
}
// Inside a document; e = a - 1, and ln a = rate * r.
__device__ __forceinline__ TokenGrads GradsInside(float delta, float u, float zi, float r, float e,
                                                  float rate, float before) {
  const float i = Sigmoid(zi), a = 1 + e;
  const float square = OneMinusSquare(e);                          // m^2
  const float inverse = InverseSquareRoot(fmaxf(square, 1e-30f));  // 1 / m
  const float m = square * inverse;
  const float slope = fminf(0.5f * inverse, 1000.0f);
  const float dv = delta * m, iu = i * u;
  const float decay = r * delta * a * (before - 2 * a * iu * slope);
  return {dv * i, dv * iu * (1 - i), rate * decay * (1 - r), decay};
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 3 : 2)
    BackwardKernel(Plan plan, Board board, BackwardTensors<T> tensors) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<T>*>(memory);
  const int warp = threadIdx.x / 32, c = 2 * (threadIdx.x % 32);
  const int last_row = kRows - 1 - warp * kSteps;  // the warp's first in the order of the scan
  float r[kSteps][2], e[kSteps][2];
  bool inside = false;  // a document, all the warp's tokens

  const auto load = [&](int, const Tile& tile, int loader) {
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.zr, shared.zr);
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.dh, shared.dh);
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.u, shared.u);
    LoadTile<kVectors>(plan, tile, loader, tile.t, tensors.zi, shared.zi);
    LoadTile<kVectors>(plan, tile, loader, tile.t - 1, tensors.h, shared.before);
    LoadFacts(plan, tile, loader, tensors.lambda, tensors.positions, shared.facts);
  };
  const auto map = [&](int, const Tile&) {
    const auto rate = LoadVector<2>(&shared.facts.rate[c]);
    Affine total[2];
    inside = AllInside(shared.facts, last_row - (kSteps - 1));
    WithConstant(inside, [&](auto constant) {
      constexpr bool kInside = decltype(constant)::value;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int row = last_row - step, position = kInside ? 1 : shared.facts.positions[row];
        const auto zr = LoadVector<2>(&shared.zr[row][c]), dh = LoadVector<2>(&shared.dh[row][c]);
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          r[step][v] = Sigmoid(zr[v]);
          e[step][v] = DecayMinusOne(rate[v] * r[step][v]);
          const Affine token = TokenGradMap<kInside>(dh[v], e[step][v], position);
          total[v] = step == 0 ? token : Then<kInside>(total[v], token);
        }
      }
    });
    for (int v = 0; v < 2; ++v) shared.maps[warp][c + v] = total[v];
  };
  const auto link = [&](int, const Tile& tile) {
    Link(plan, board, tile, shared.maps, tensors.dh_last, tensors.dh0);
  };
  const auto finish = [&](int, const Tile& tile) {
    const int count = tile.count(plan);
    const float rate[2] = {kLn2 * shared.facts.rate[c], kLn2 * shared.facts.rate[c + 1]};
    float carry[2] = {shared.maps[warp][c].x, shared.maps[warp][c + 1].x};
    float sums[kSums][2] = {};
    const auto walk = [&](auto constant) {
      constexpr bool kInside = decltype(constant)::value;
      int64_t offset = tile.Offset(plan, tile.t + last_row);
#pragma unroll
      for (int step = 0; step < kSteps; ++step, offset -= plan.channels) {
        const int row = last_row - step, position = kInside ? 1 : shared.facts.positions[row];
        if (position < 0) continue;
        const auto u = LoadVector<2>(&shared.u[row][c]), zi = LoadVector<2>(&shared.zi[row][c]);
        const auto dh = LoadVector<2>(&shared.dh[row][c]);
        const auto before = LoadVector<2>(&shared.before[row][c]);
        float du[2], dzi[2], dzr[2];
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const float delta = dh[v] + carry[v];
          TokenGrads grads;
          if (position == 0) {
            grads = GradsAtStart(delta, u[v], zi[v]);
            carry[v] = 0;
          } else {
            float h_before = before[v];
            if (!kInside && tile.t + row == 0 && tensors.h0 != nullptr && c + v < count) {
              h_before = tensors.h0[int64_t{tile.b} * plan.channels + tile.channel + c + v];
            }
            grads = GradsInside(delta, u[v], zi[v], r[step][v], e[step][v], rate[v], h_before);
            carry[v] = (1 + e[step][v]) * delta;
          }
          du[v] = grads.du;
          dzi[v] = grads.dzi;
          dzr[v] = grads.dzr;
          sums[0][v] += grads.decay;
          sums[1][v] += grads.dzi;
          sums[2][v] += grads.dzr;
        }
        StorePair<kVectors>(tensors.du + offset, c, count, du);
        StorePair<kVectors>(tensors.dzi + offset, c, count, dzi);
        StorePair<kVectors>(tensors.dzr + offset, c, count, dzr);
      }
    };
    // The state before a sequence's first token is not in `before`.
    const bool at_start = tile.t == 0 && warp == kWarps - 1;
    WithConstant(inside && !at_start, walk);
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      for (int v = 0; v < 2; ++v) shared.sums[k][warp][c + v] = sums[k][v];
    }
    __syncthreads();
    static_assert(kThreads >= kSums * kColumns);
    if (threadIdx.x < kSums * kColumns) {
      const int k = threadIdx.x / kColumns, column = threadIdx.x % kColumns;
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared.sums[k][w][column];
      const int row = tile.order * plan.batch + tile.b;
      tensors.sums[(row * kSums + k) * plan.width() + tile.channel + column] = sum;
    }
  };
  ForTiles<true>(plan, board, shared.tiles, load, map, link, finish);
}

// Adds the sums over all tiles to the gradients that they are; `i` counts a tile row's [kSums,
// width].
struct AddSums {
  __device__ void operator()(int64_t i, float sum) const {
    const int64_t c = i % width;
    if (c >= channels) return;
    if (i < width) {
      dlambda[c] += -8 * Sigmoid(lambda[c]) * sum;  // by d rate / d lambda
    } else if (float* of_gate = i < 2 * width ? dzi : dzr; of_gate != nullptr) {
      of_gate[c] += sum;
    }
  }
  int64_t width, channels;
  const float* lambda;
  float *dlambda, *dzi, *dzr;
};

template <auto kKernel, class Shared, class Tensors>
void LaunchScan(const char* name, const Plan& plan, const Board& board, const Tensors& tensors) {
  const int blocks = std::min(plan.tiles(), ResidentBlocks<kKernel>(sizeof(Shared)));
  Launch(name, kKernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(Shared), plan,
         board, tensors);
}

}  // namespace
}  // namespace rg_lru

void RgLruForwardCuda(const RgLruForwardArgs& args) {
  using namespace rg_lru;
  const Plan plan(args.u.shape);
  if (plan.tiles() == 0) return;
  if (plan.time == 1) return RgLruStepCuda(args);
  const Board board(args.workspace.data<float>());
  board.Clear(plan);
  DispatchCuda("RgLruForward", args.u, [&]<class T>(T) {
    const ForwardTensors<T> tensors{args.u.data<T>(),           args.zi.data<T>(),
                                    args.zr.data<T>(),          args.lambda.data<float>(),
                                    args.positions.data<int>(), args.h0.data<float>(),
                                    args.h.data<T>(),           args.h_last.data<float>()};
    if (AllFitVectors<T>(plan.channels, {tensors.u, tensors.zi, tensors.zr, tensors.h})) {
      LaunchScan<ForwardKernel<T, true>, ForwardShared<T>>("RgLruForward", plan, board, tensors);
    } else {
      LaunchScan<ForwardKernel<T, false>, ForwardShared<T>>("RgLruForward", plan, board, tensors);
    }
  });
}

void RgLruBackwardCuda(const RgLruBackwardArgs& args) {
  using namespace rg_lru;
  const Plan plan(args.u.shape);
  if (plan.tiles() == 0) return;
  float* workspace = args.workspace.data<float>();
  const Board board(workspace);
  board.Clear(plan);
  DispatchCuda("RgLruBackward", args.u, [&]<class T>(T) {
    const BackwardTensors<T> tensors{
        args.u.data<T>(),          args.zi.data<T>(),          args.zr.data<T>(),
        args.lambda.data<float>(), args.positions.data<int>(), args.h0.data<float>(),
        args.h.data<T>(),          args.dh.data<T>(),          args.dh_last.data<float>(),
        args.du.data<T>(),         args.dzi.data<T>(),         args.dzr.data<T>(),
        args.dh0.data<float>(),    workspace + BoardSize(plan)};
    if (AllFitVectors<T>(plan.channels, {tensors.u, tensors.zi, tensors.zr, tensors.h, tensors.dh,
                                         tensors.du, tensors.dzi, tensors.dzr})) {
      LaunchScan<BackwardKernel<T, true>, BackwardShared<T>>("RgLruBackward", plan, board, tensors);
    } else {
      LaunchScan<BackwardKernel<T, false>, BackwardShared<T>>("RgLruBackward", plan, board,
                                                              tensors);
    }
    RowSumCuda("RgLruBackward", tensors.sums, int64_t{plan.orders} * plan.batch,
               int64_t{kSums} * plan.width(),
               AddSums{.width = plan.width(),
                       .channels = plan.channels,
                       .lambda = tensors.lambda,
                       .dlambda = args.dlambda.data<float>(),
                       .dzi = args.dzi_sum.data<float>(),
                       .dzr = args.dzr_sum.data<float>()});
  });
}

}  // namespace eyrie
