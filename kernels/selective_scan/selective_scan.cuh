// How the selective scan runs on a GPU. A block takes 32 neighbouring channels of one sequence
// through a chunk of its tokens: a lane is a channel, and each warp has four of the states of all
// 32. Tokens are taken 16 at a time: all threads together compute what a token's channels share
// (the step size, the gate) and leave it in shared memory, then each warp carries its own states
// through the 16 tokens, and the warps' contributions to each token's output are added up. So an
// exponential per channel, state and token is all that the special function unit, which bounds
// these kernels, is asked for beside a few per channel and token.
//
// Where sequences and channels alone are too few blocks to fill a GPU, and in the backward pass,
// time is cut into chunks: ChunkKernel finds the affine map that each chunk is of the state before
// it, LinkKernel turns these maps into the states that the chunks start from, and then all chunks
// run at once. A chunk's map is s -> exp(A sum of delta) s + increment; infinity stands for the sum
// where a document starts inside.
#pragma once

#include <type_traits>

#include "kernels/cuda_math.cuh"
#include "kernels/selective_scan/selective_scan_plan.h"

namespace eyrie::selective_scan {

inline constexpr int kThreadStates = 4;  // states of a thread

// Calls body(w) with w, an integral constant, the number of warps that hold N states.
template <class Body>
void DispatchWarps(int states, const Body& body) {
  if (states <= 8) {
    body(std::integral_constant<int, 2>{});
  } else if (states <= 16) {
    body(std::integral_constant<int, 4>{});
  } else if (states <= 32) {
    body(std::integral_constant<int, 8>{});
  } else {
    body(std::integral_constant<int, 16>{});
  }
}

// What the kernels read.
template <class T>
struct Inputs {
  template <class Args>
  explicit Inputs(const Args& args)
      : dt(args.dt.template data<T>()),
        bc(args.bc.template data<T>()),
        a_log(args.a_log.template data<float>()),
        dt_bias(args.dt_bias.template data<float>()),
        positions(args.positions.template data<int>()),
        row(args.bc.dim(2)) {}
  const T *x = nullptr, *dt, *z = nullptr, *bc;
  const T* dout = nullptr;
  const float *a_log, *dt_bias;
  const int* positions;
  int64_t row;  // of bc
};

// Where a thread stands: a channel of a sequence, by its lane, and four states, by its warp.
struct Place {
  __device__ Place(const Plan& plan, int sequence, int block)
      : b(sequence),
        warp(static_cast<int>(threadIdx.x) / 32),
        lane(static_cast<int>(threadIdx.x) % 32),
        channel(block * kColumns + lane),
        state(warp * kThreadStates),
        exists(channel < plan.channels) {}
  // Of a [B, T, E] tensor.
  __device__ int64_t Offset(const Plan& plan, int t) const {
    return (int64_t{b} * plan.time + t) * plan.channels + channel;
  }
  // Of the thread's first state in a [B, ..., E, N] tensor, `index` of [B, ...].
  __device__ int64_t StateOffset(const Plan& plan, int64_t index) const {
    return index * plan.state_size() + int64_t{channel} * plan.states + state;
  }
  // Of the thread's states, those that exist.
  __device__ int count(const Plan& plan) const {
    return exists ? min(max(plan.states - state, 0), kThreadStates) : 0;
  }
  int b, warp, lane, channel, state;
  bool exists;
};

// A thread's states to and from memory; zeros where there are none.
__device__ __forceinline__ void LoadStates(const float* from, int count,
                                           float (&to)[kThreadStates]) {
#pragma unroll
  for (int i = 0; i < kThreadStates; ++i) to[i] = i < count ? from[i] : 0;
}
__device__ __forceinline__ void StoreStates(const float (&from)[kThreadStates], int count,
                                            float* to) {
#pragma unroll
  for (int i = 0; i < kThreadStates; ++i) {
    if (i < count) to[i] = from[i];
  }
}
// A log2(e) of the thread's states, so that a decay is 2^(delta rate).
__device__ __forceinline__ void LoadRates(const Plan& plan, const Place& place, const float* a_log,
                                          float (&rates)[kThreadStates]) {
  const int count = place.count(plan);
  const float* from = a_log + place.StateOffset(plan, 0);
#pragma unroll
  for (int i = 0; i < kThreadStates; ++i) {
    rates[i] = i < count ? -kLog2E * Exp2(kLog2E * from[i]) : 0;
  }
}

// The position of token first + lane, of `count` at most 32; 1 where there is none.
__device__ __forceinline__ int LoadPosition(const Plan& plan, const Place& place,
                                            const int* positions, int first, int count) {
  const int t = first + place.lane;
  return place.lane < count ? positions[int64_t{place.b} * plan.time + t] : 1;
}
// Of these, for a whole warp: bit t is set where a document starts at token first + t.
__device__ __forceinline__ unsigned Starts(int position) {
  return __ballot_sync(~0u, position == 0);
}

// Four values of a row in shared memory.
__device__ __forceinline__ float4 Four(const float* row) {
  return *reinterpret_cast<const float4*>(row);
}

// B and C of kTokens tokens as a block's threads fetch them: to registers, as they are, so that
// nothing waits for them there, then to shared memory.
template <class T, int kWarps, int kTokens>
struct BcTile {
  static constexpr int kPadded = kWarps * kThreadStates;  // N
  static constexpr int kEach = kTokens * 2 * kPadded / (32 * kWarps);

  __device__ void Load(const Plan& plan, const Inputs<T>& in, int b, int first, int end) {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = static_cast<int>(threadIdx.x) + k * 32 * kWarps;
      const int t = first + i / (2 * kPadded), j = i % (2 * kPadded);
      const int n = j % kPadded;
      const bool exists = t < end && n < plan.states;
      const int64_t from =
          (int64_t{b} * plan.time + t + 1) * in.row - (j < kPadded ? 2 : 1) * plan.states + n;
      values[k] = exists ? in.bc[from] : FromFloat<T>(0);
    }
  }
  __device__ void Store(float (*to)[2 * kPadded]) const {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      (&to[0][0])[threadIdx.x + k * 32 * kWarps] = ToFloat(values[k]);
    }
  }
  T values[kEach];
};

// What a scan of a chunk reads of a tile of tokens.
template <int kWarps>
struct ScanTile {
  float2 step[kTile][kColumns];  // delta, delta x; zeros where there is no token or channel
  alignas(16) float bc[kTile][2 * kWarps * kThreadStates];
};

// The gradient of what the gate multiplies.
__device__ __forceinline__ float GateGradient(float z, float dout) { return dout * z * Sigmoid(z); }

template <class T>
struct ChunkTensors {
  Inputs<T> in;
  float* sums;        // [B, chunks, E] of delta, infinity where a document starts
  float* increments;  // [B, chunks, E, N] of the state
  float* gradients;   // [B, chunks, E, N] of the gradient, against time
};

// The chunks' maps: of the state (kState), of its gradient on the way back (kGradient), or both.
template <class T, int kWarps, bool kState, bool kGradient>
__global__ void __launch_bounds__(32 * kWarps)
    ChunkKernel(const Plan plan, const ChunkTensors<T> tensors) {
  constexpr int kMine = kTile / kWarps;  // tokens of a tile whose shared part a thread computes
  constexpr int kPadded = kWarps * kThreadStates;
  __shared__ ScanTile<kWarps> tile;
  __shared__ float dy[kGradient ? kTile : 1][kColumns];
  const Inputs<T>& in = tensors.in;
  const Place place(plan, blockIdx.z, blockIdx.x);
  const int begin = blockIdx.y * plan.chunk, end = min(plan.time, begin + plan.chunk);
  const float bias = place.exists ? in.dt_bias[place.channel] : 0;
  float rates[kThreadStates], h[kThreadStates] = {}, gradient[kThreadStates] = {};
  LoadRates(plan, place, in.a_log, rates);
  float decay[kThreadStates] = {1, 1, 1, 1};  // from the chunk's first token on
  float sum = 0;
  bool starts_inside = false;

  for (int first = begin; first < end; first += kTile) {
    const unsigned starts =
        Starts(LoadPosition(plan, place, in.positions, first, min(kTile, end - first)));
    BcTile<T, kWarps, kTile> bc;
    bc.Load(plan, in, place.b, first, end);
    float2 step[kMine];
    float own_dy[kMine];
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      const int t = first + k * kWarps + place.warp;
      const bool exists = t < end && place.exists;
      const int64_t at = exists ? place.Offset(plan, t) : 0;
      const float delta = exists ? Softplus(ToFloat(in.dt[at]) + bias) : 0;
      step[k] = {delta, 0};
      if constexpr (kState) step[k].y = exists ? delta * ToFloat(in.x[at]) : 0;
      if constexpr (kGradient) {
        own_dy[k] = exists ? GateGradient(ToFloat(in.z[at]), ToFloat(in.dout[at])) : 0;
      }
    }
    __syncthreads();  // the tile before has been read
    bc.Store(tile.bc);
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      tile.step[k * kWarps + place.warp][place.lane] = step[k];
      if constexpr (kGradient) dy[k * kWarps + place.warp][place.lane] = own_dy[k];
    }
    __syncthreads();
#pragma unroll 4
    for (int t = 0; t < kTile; ++t) {
      const float2 token = tile.step[t][place.lane];
      sum += token.x;
      if (starts >> t & 1) {
        starts_inside = true;
#pragma unroll
        for (int i = 0; i < kThreadStates; ++i) h[i] = 0;
      }
      const float4 b4 = Four(&tile.bc[t][place.state]);
      const float4 c4 = Four(&tile.bc[t][kPadded + place.state]);
      const float b[] = {b4.x, b4.y, b4.z, b4.w}, c[] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
      for (int i = 0; i < kThreadStates; ++i) {
        const float a = Exp2(token.x * rates[i]);
        if constexpr (kState) h[i] = fmaf(a, h[i], token.y * b[i]);
        if constexpr (kGradient) {
          if (starts_inside) continue;  // no gradient passes a start
          decay[i] *= a;
          gradient[i] = fmaf(decay[i], c[i] * dy[t][place.lane], gradient[i]);
        }
      }
    }
  }
  const int64_t index = int64_t{place.b} * plan.chunks + blockIdx.y;
  const int64_t at = place.StateOffset(plan, index);
  if constexpr (kState) StoreStates(h, place.count(plan), tensors.increments + at);
  if constexpr (kGradient) StoreStates(gradient, place.count(plan), tensors.gradients + at);
  if (place.warp == 0 && place.exists) {
    tensors.sums[index * plan.channels + place.channel] = starts_inside ? INFINITY : sum;
  }
}

// Links the chunks' maps, one thread a state: `maps` [B, chunks, E, N], the increments, become what
// enters each chunk, from the first or, with kReverse, from the last on. `first` [B, E, N],
// optional, enters the first of them, and `last`, optional, receives what leaves the last. `decay`,
// optional, receives the product of all chunks' decays.
template <bool kReverse>
__global__ void LinkKernel(const Plan plan, const float* a_log, const float* sums, float* maps,
                           const float* first, float* last, float* decay) {
  constexpr int kBatch = 8;  // maps that are loaded at once
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, size = plan.state_size();
  if (i >= size) return;
  const int b = blockIdx.y;
  const int64_t channel = i / plan.states;
  const float rate = -kLog2E * Exp2(kLog2E * a_log[i]);
  const auto decay_over = [&](float sum) { return isinf(sum) ? 0.0f : Exp2(sum * rate); };
  float state = first != nullptr ? first[b * size + i] : 0, total = 0;
  for (int begin = 0; begin < plan.chunks; begin += kBatch) {
    float sum[kBatch], increment[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int order = min(begin + k, plan.chunks - 1);
      const int64_t chunk = int64_t{b} * plan.chunks + (kReverse ? plan.chunks - 1 - order : order);
      sum[k] = sums[chunk * plan.channels + channel];
      increment[k] = maps[chunk * size + i];
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int order = begin + k;
      if (order >= plan.chunks) break;
      const int64_t chunk = int64_t{b} * plan.chunks + (kReverse ? plan.chunks - 1 - order : order);
      maps[chunk * size + i] = state;
      // A document's start takes nothing of what came before, not even a NaN.
      state = isinf(sum[k]) ? increment[k] : fmaf(decay_over(sum[k]), state, increment[k]);
      total += sum[k];
    }
  }
  if (last != nullptr) last[b * size + i] = state;
  if (decay != nullptr) decay[b * size + i] = decay_over(total);
}

template <class T, bool kState, bool kGradient>
void FindChunkMaps(const char* name, const Plan& plan, const ChunkTensors<T>& tensors) {
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.chunks),
                  static_cast<unsigned>(plan.batch));
  DispatchWarps(plan.states, [&](auto warps) {
    Launch(name, ChunkKernel<T, warps(), kState, kGradient>, grid, dim3(32 * warps()), 0, plan,
           tensors);
  });
}

template <bool kReverse>
void LinkChunks(const char* name, const Plan& plan, const float* a_log, const float* sums,
                float* maps, const float* first, float* last, float* decay) {
  constexpr int kThreads = 128;
  const dim3 grid(Pieces(plan.state_size(), kThreads), static_cast<unsigned>(plan.batch));
  Launch(name, LinkKernel<kReverse>, grid, dim3(kThreads), 0, plan, a_log, sums, maps, first, last,
         decay);
}

}  // namespace eyrie::selective_scan
