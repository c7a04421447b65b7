#include <algorithm>

#include "kernels/adamw/adamw_coefficients.h"
#include "kernels/adamw/adamw_cuda.h"
#include "kernels/cuda_elementwise.cuh"

namespace eyrie {
namespace {

template <class Moment, class Copy>
struct AdamWOperation {
  AdamWCoefficients<float> c;
  float* param;
  const float* grad;
  Moment *m, *v;
  Copy* copy;             // or null
  const int32_t* decays;  // or null

  template <int N>
  __device__ void At(int64_t i) const {
    Vector<float, N> p = LoadVector<N>(param + i);
    const Vector<float, N> gradient = LoadVector<N>(grad + i);
    Vector<Moment, N> mean = LoadVector<N>(m + i), square = LoadVector<N>(v + i);
    Vector<Copy, N> rounded;
    // A thread's elements, which start at a multiple of N, lie in one group.
    static_assert(kDecayGroup % N == 0);
    const int64_t group = i / kDecayGroup;
    const bool decayed = decays == nullptr || (decays[group / 32] >> group % 32 & 1) != 0;
    const float decay = decayed ? c.decay : 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = gradient[j] * c.grad_scale;
      const float new_mean = c.beta1 * mean[j] + c.rest1 * g;
      const float new_square = c.beta2 * square[j] + c.rest2 * (g * g);
      const float step = c.m_rate * new_mean / (sqrtf(new_square * c.v_scale) + c.epsilon);
      const float moved = p[j] - (step + decay * p[j]);
      mean.Set(j, new_mean);
      square.Set(j, new_square);
      p.Set(j, moved);
      rounded.Set(j, moved);
    }
    StoreVector(m + i, mean);
    StoreVector(v + i, square);
    StoreVector(param + i, p);
    if (copy != nullptr) StoreVector(copy + i, rounded);
  }
};

// partial[blockIdx.x] := the sum of squares of the vectors that the block's threads take in turn.
template <class T, int kWidth>
__global__ void __launch_bounds__(kSumThreads)
    SumOfSquaresKernel(const T* __restrict__ x, int64_t count, double* __restrict__ partial) {
  __shared__ double shared[32];
  const int64_t step = int64_t{gridDim.x} * kSumThreads * kWidth;
  const int64_t whole = count / kWidth * kWidth;
  const int64_t thread = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  double sum = 0;
  for (int64_t i = thread * kWidth; i < whole; i += step * kSumUnroll) {
    Vector<T, kWidth> values[kSumUnroll];
#pragma unroll
    for (int u = 0; u < kSumUnroll; ++u) {
      if (i + u * step < whole) values[u] = LoadVector<kWidth>(x + i + u * step);
    }
#pragma unroll
    for (int u = 0; u < kSumUnroll; ++u) {
      if (i + u * step >= whole) continue;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const double value = values[u][j];
        sum += value * value;
      }
    }
  }
  if (whole + thread < count) {  // less than a vector is left
    const double value = ToFloat(x[whole + thread]);
    sum += value * value;
  }
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// sum += all of partial [count]; one block.
__global__ void __launch_bounds__(kSumThreads)
    AddPartialsKernel(const double* __restrict__ partial, int count, double* sum) {
  __shared__ double shared[32];
  double own = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSumThreads) own += partial[i];
  own = BlockSum(own, shared);
  if (threadIdx.x == 0) *sum += own;
}

}  // namespace

void AdamWCuda(const AdamWArgs& args) {
  const char* kernel = "adamw";
  const Tensor& copy = args.copy.defined() ? args.copy : args.param;
  DispatchCuda(kernel, args.m, [&]<class Moment>(Moment) {
    DispatchCuda(kernel, copy, [&]<class Copy>(Copy) {
      const AdamWOperation<Moment, Copy> body{
          AdamWCoefficients<float>(args), args.param.data<float>(), args.grad.data<float>(),
          args.m.data<Moment>(),          args.v.data<Moment>(),    args.copy.data<Copy>(),
          args.decays.data<int32_t>()};
      constexpr int kWidth = 4;
      const bool aligned = Aligned<kWidth>(body.param, body.grad, body.m, body.v, body.copy);
      LaunchElementwise<kWidth>(kernel, args.param.size(), aligned, body);
    });
  });
}

void SumOfSquaresCuda(const Tensor& values, const Tensor& sum, const Tensor& workspace) {
  const char* kernel = "sum_of_squares";
  const auto blocks = static_cast<unsigned>(SumBlocks(values.size()));
  if (blocks == 0) return;
  double* partial = reinterpret_cast<double*>(workspace.data<float>());
  DispatchCuda(kernel, values, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T* x = values.data<T>();
    Launch(kernel, Aligned<kWidth>(x) ? SumOfSquaresKernel<T, kWidth> : SumOfSquaresKernel<T, 1>,
           blocks, kSumThreads, 0, x, values.size(), partial);
  });
  Launch(kernel, AddPartialsKernel, 1, kSumThreads, 0, partial, static_cast<int>(blocks),
         sum.data<double>());
}

}  // namespace eyrie
