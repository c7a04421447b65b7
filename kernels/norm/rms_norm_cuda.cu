// RMSNorm on the GPU. N rows of width D. A block holds a row in registers, each thread kVectors
// vectors of kWidth elements that lie a block's width apart: one pass over every tensor.
#include <algorithm>

#include "core/early_launch.cuh"
#include "kernels/column_sum.cuh"
#include "kernels/norm/rms_norm_cuda.h"

namespace eyrie {
namespace {

// Where vectors do not fit, a thread holds so many single elements.
constexpr int kScalars = 16;

// Threads of a block whose threads hold `each` elements of a row.
unsigned BlockThreads(int64_t width, int each) { return 32 * Pieces(width, 32 * int64_t{each}); }
// The most there can be.
constexpr int MaxThreads(int each) { return static_cast<int>(kMaxNormWidthCuda) / each; }

// Zeros for an absent weight.
template <int kWidth, class T>
__device__ __forceinline__ Vector<T, kWidth> LoadWeight(const T* weight, int at) {
  return weight == nullptr ? Vector<T, kWidth>{} : LoadVector<kWidth>(weight + at);
}

// x (1 + weight), rounded before anything else happens to it. Otherwise the compiler, which knows
// the weight where it is absent, would fuse other operations there than elsewhere, and an absent
// weight would not give the bits of one of zeros.
__device__ __forceinline__ float Weighted(float x, float weight) {
  return __fmul_rn(x, __fadd_rn(1.0f, weight));
}

template <class T, int kWidth, int kVectors>
__global__ void __launch_bounds__(MaxThreads(kWidth* kVectors))
    ForwardKernel(const T* x, const T* __restrict__ weight, T* y, float* rstd, int width,
                  float epsilon) {
  LetNextStart();
  AwaitEarlier();
  __shared__ float shared[32];
  const int64_t row = int64_t{blockIdx.x} * width;
  const int first = static_cast<int>(threadIdx.x) * kWidth;
  const int step = static_cast<int>(blockDim.x) * kWidth;

  Vector<T, kWidth> values[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at < width) values[k] = LoadVector<kWidth>(x + row + at);
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= width) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += values[k][i] * values[k][i];
  }
  const float mean = BlockSum(squares, shared) / static_cast<float>(width);
  const float r = rsqrtf(mean + epsilon);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= width) continue;
    const Vector<T, kWidth> w = LoadWeight<kWidth>(weight, at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[k].Set(i, Weighted(values[k][i] * r, w[i]));
    StoreVector(y + row + at, values[k]);
  }
}

// A block takes rows blockIdx.x, blockIdx.x + gridDim.x, ... and keeps their share of dweight in
// registers; partial [gridDim.x, D] := these shares, unless it is null. The weight is not declared
// __restrict__, so that it is read again after the barrier (from the L1 cache) rather than spilled
// across it.
template <class T, int kWidth, int kVectors, bool kResidual>
__global__ void __launch_bounds__(kVectors <= 2 ? 256 : MaxThreads(kWidth * kVectors),
                                  kVectors == 1 ? 4 : (kVectors == 2 ? 2 : 1))
    BackwardKernel(const T* __restrict__ x, const T* weight, const float* __restrict__ rstd,
                   const T* __restrict__ dy, const T* dresidual, T* dx, float* __restrict__ partial,
                   int64_t rows, int width) {
  // Two of them, by turns: a row's sums may still be read while the next row's are written.
  __shared__ float shared[2][32];
  const int first = static_cast<int>(threadIdx.x) * kWidth;
  const int step = static_cast<int>(blockDim.x) * kWidth;
  float dweight[kVectors][kWidth] = {};

  int turn = 0;
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x, turn ^= 1) {
    const int64_t row = n * width;
    const float r = rstd[n];
    Vector<T, kWidth> values[kVectors], gradients[kVectors], added[kResidual ? kVectors : 1];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= width) continue;
      values[k] = LoadVector<kWidth>(x + row + at);
      gradients[k] = LoadVector<kWidth>(dy + row + at);
      if constexpr (kResidual) added[k] = LoadVector<kWidth>(dresidual + row + at);
    }
    float dot = 0;  // of dy (1 + weight) and x
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= width) continue;
      const Vector<T, kWidth> w = LoadWeight<kWidth>(weight, at);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        dot = fmaf(Weighted(gradients[k][i], w[i]), values[k][i], dot);
      }
    }
    const float along = BlockSum(dot, shared[turn]) * r * r / static_cast<float>(width);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= width) continue;
      const Vector<T, kWidth> w = LoadWeight<kWidth>(weight, at);
      Vector<T, kWidth> out;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float gradient = gradients[k][i], value = values[k][i];
        float d = r * fmaf(-value, along, Weighted(gradient, w[i]));
        if constexpr (kResidual) d += added[k][i];
        out.Set(i, d);
        dweight[k][i] += gradient * value * r;
      }
      StoreVector(dx + row + at, out);
    }
  }
  if (partial == nullptr) return;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= width) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) partial[int64_t{blockIdx.x} * width + at + i] = dweight[k][i];
  }
}

}  // namespace

void RmsNormForwardCuda(const RmsNormForwardArgs& args) {
  const char* kernel = "RmsNormForward";
  const int64_t width = args.x.dim(-1), rows = args.rstd.size();
  CheckNormWidth(kernel, width);
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>, kVectors = 4;
    const T *x = args.x.data<T>(), *weight = args.weight.data<T>();
    T* y = args.y.data<T>();
    const bool vectors = Aligned<kWidth>(x, weight, y) && width % kWidth == 0;
    const auto launch = [&](auto body, int each) {
      LaunchEarly(kernel, body, static_cast<unsigned>(rows), BlockThreads(width, each), 0, x,
                  weight, y, args.rstd.data<float>(), static_cast<int>(width),
                  static_cast<float>(args.epsilon));
    };
    vectors ? launch(ForwardKernel<T, kWidth, kVectors>, kWidth * kVectors)
            : launch(ForwardKernel<T, 1, kScalars>, kScalars);
  });
}

void RmsNormBackwardCuda(const RmsNormBackwardArgs& args) {
  const char* kernel = "RmsNormBackward";
  const int64_t width = args.x.dim(-1), rows = args.rstd.size();
  CheckNormWidth(kernel, width);
  if (rows == 0) return;
  const auto blocks = static_cast<unsigned>(RmsNormBackwardBlocks(rows, width));
  float* partial = args.dweight.defined() ? args.workspace.data<float>() : nullptr;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T *x = args.x.data<T>(), *weight = args.weight.data<T>(), *dy = args.dy.data<T>();
    const T* dresidual = args.dresidual.data<T>();
    T* dx = args.dx.data<T>();
    const bool vectors = Aligned<kWidth>(x, weight, dy, dresidual, dx) && width % kWidth == 0;
    const auto launch = [&](auto body, int each) {
      Launch(kernel, body, blocks, BlockThreads(width, each), 0, x, weight, args.rstd.data<float>(),
             dy, dresidual, dx, partial, rows, static_cast<int>(width));
    };
    const auto pick = [&]<bool kResidual>(std::bool_constant<kResidual>) {
      if (!vectors) {
        launch(BackwardKernel<T, 1, kScalars, kResidual>, kScalars);
      } else if (width <= 256 * kWidth) {
        launch(BackwardKernel<T, kWidth, 1, kResidual>, kWidth);
      } else if (width <= 2 * 256 * kWidth) {
        launch(BackwardKernel<T, kWidth, 2, kResidual>, 2 * kWidth);
      } else {
        launch(BackwardKernel<T, kWidth, 4, kResidual>, 4 * kWidth);
      }
    };
    dresidual != nullptr ? pick(std::true_type()) : pick(std::false_type());
  });
  if (partial == nullptr) return;
  AddColumnSums(kernel, partial, blocks, width, args.dweight.data<float>());
}

}  // namespace eyrie
