// The rotary embedding on the GPU. H heads of width dh, n = dh / 4 angles. A block takes some
// tokens: it computes their cosines and sines once, and then rotates all their heads.
#include <algorithm>
#include <cmath>

#include "core/early_launch.cuh"
#include "kernels/cuda_math.cuh"
#include "kernels/rotary/rotary_cuda.h"

namespace eyrie {
namespace {

constexpr int kThreads = 256, kMaxTokens = 16, kMaxAngles = 2048;

// Angles are counted in turns, in float64, of which whole ones are dropped before the rest is
// rounded to float32: angle_i = position base^(-i/n) = 2 pi position 2^(i log2_step) / (2 pi).
// `direction` is 1 or -1. Shared memory: n float64 frequencies, then [tokens, n] pairs.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    RotaryKernel(T* __restrict__ x, const int32_t* __restrict__ positions, int64_t tokens,
                 int block_tokens, int heads, int angles, double log2_step, float direction) {
  LetNextStart();
  extern __shared__ double frequencies[];
  float2* rotations = reinterpret_cast<float2*>(frequencies + angles);
  const int64_t first = int64_t{blockIdx.x} * block_tokens;
  const int here = static_cast<int>(min(int64_t{block_tokens}, tokens - first));
  const int thread = static_cast<int>(threadIdx.x);

  constexpr double kTurn = 0.15915494309189535;  // 1 / (2 pi)
  for (int i = thread; i < angles; i += kThreads) frequencies[i] = kTurn * exp2(i * log2_step);
  AwaitEarlier();
  __syncthreads();
  for (int pair = thread; pair < here * angles; pair += kThreads) {
    const double turns = positions[first + pair / angles] * frequencies[pair % angles];
    float sine, cosine;
    sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
    rotations[pair] = {cosine, direction * sine};
  }
  __syncthreads();

  // Vectors of the lower quarters of the block's heads, head by head.
  const int vectors = angles / kWidth, per_token = heads * vectors;
  T* block_x = x + first * heads * 4 * angles;
#pragma unroll 2
  for (int item = thread; item < here * per_token; item += kThreads) {
    const int head = item / vectors, i = item % vectors * kWidth;
    T* low = block_x + int64_t{head} * 4 * angles + i;
    T* high = low + angles;
    Vector<T, kWidth> a = LoadVector<kWidth>(low), b = LoadVector<kWidth>(high);
    const float2* rotation = rotations + item / per_token * angles + i;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float2 r = rotation[j];
      const float lower = a[j], upper = b[j];
      a.Set(j, lower * r.x - upper * r.y);
      b.Set(j, upper * r.x + lower * r.y);
    }
    StoreVector(low, a);
    StoreVector(high, b);
  }
}

}  // namespace

void RotaryCuda(const RotaryArgs& args) {
  const char* kernel = "Rotary";
  const int64_t tokens = args.positions.size(), heads = args.x.dim(2), angles = args.x.dim(3) / 4;
  if (tokens * heads * angles == 0) return;
  EYRIE_CHECK(angles <= kMaxAngles && heads * angles <= (1 << 24), kernel, ": heads [", heads, ", ",
              4 * angles, "] are too wide");
  const int block_tokens = static_cast<int>(std::clamp<int64_t>(2048 / angles, 1, kMaxTokens));
  const size_t shared =
      static_cast<size_t>(angles) * (sizeof(double) + sizeof(float2) * block_tokens);
  const double log2_step = -std::log2(args.base) / static_cast<double>(angles);
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    T* x = args.x.data<T>();
    LaunchEarly(kernel, FitsVectors<T>(x, angles) ? RotaryKernel<T, kWidth> : RotaryKernel<T, 1>,
                Pieces(tokens, block_tokens), kThreads, shared, x, args.positions.data<int32_t>(),
                tokens, block_tokens, static_cast<int>(heads), static_cast<int>(angles), log2_step,
                args.inverse ? -1.0f : 1.0f);
  });
}

}  // namespace eyrie
