// SiLU and LRPE on the GPU. H heads of width dh; D = H dh channels.
#include <algorithm>

#include "kernels/column_sum.cuh"
#include "kernels/cuda_elementwise.cuh"
#include "kernels/lrpe/lrpe_cuda.h"

namespace eyrie {
namespace {

constexpr int kThreads = 128;

struct Silu {
  __device__ __forceinline__ explicit Silu(float x) {
    const float s = Sigmoid(x);
    value = x * s;
    slope = s * (1.0f + x * (1.0f - s));
  }
  float value, slope;
};

// The cosine and sine of position * theta, to within 5e-7. Angles are counted in half turns, in
// float64, of which whole turns are dropped before the rest is rounded to float32; within half a
// turn of zero the special function unit is as good as that.
__device__ __forceinline__ float2 Rotation(int position, float theta) {
  constexpr double kHalfTurns = 0.3183098861837907;  // 1 / pi
  const double angle = position * (kHalfTurns * static_cast<double>(theta));
  float sine, cosine;
  constexpr float kPi = 3.14159265f;
  __sincosf(kPi * static_cast<float>(angle - 2.0 * rint(0.5 * angle)), &sine, &cosine);
  return {cosine, sine};
}

template <class T>
struct SiluForward {
  const T* x;
  T* y;

  template <int N>
  __device__ void At(int64_t i) const {
    Vector<T, N> values = LoadVector<N>(x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) values.Set(j, Silu(values[j]).value);
    StoreVector(y + i, values);
  }
};

template <class T>
struct SiluBackward {
  const T *x, *dy;
  T* dx;

  template <int N>
  __device__ void At(int64_t i) const {
    const Vector<T, N> values = LoadVector<N>(x + i);
    Vector<T, N> d = LoadVector<N>(dy + i);
#pragma unroll
    for (int j = 0; j < N; ++j) d.Set(j, d[j] * Silu(values[j]).slope);
    StoreVector(dx + i, d);
  }
};

// Over x; a vector lies in one head.
template <class T>
struct RotatingForward {
  const T *x, *theta;
  const int32_t* positions;
  T* y;
  int64_t channels;
  int width;  // dh

  template <int N>
  __device__ void At(int64_t i) const {
    const int64_t token = i / channels, row = i / width;
    const int position = positions[token];
    const Vector<T, N> values = LoadVector<N>(x + i);
    const Vector<T, N> angles = LoadVector<N>(theta + (i - token * channels));
    Vector<T, N> low, high;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float2 rotation = Rotation(position, angles[j]);
      const float value = Silu(values[j]).value;
      low.Set(j, value * rotation.x);
      high.Set(j, value * rotation.y);
    }
    T* to = y + i + row * width;
    StoreVector(to, low);
    StoreVector(to + width, high);
  }
};

// A thread takes kWidth channels of one head, of tokens blockIdx.y, blockIdx.y + gridDim.y, ... and
// keeps their share of dtheta; partial [gridDim.y, D] := these shares.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    RotatingBackwardKernel(const T* __restrict__ x, const T* __restrict__ theta,
                           const int32_t* __restrict__ positions, const T* __restrict__ dy,
                           T* __restrict__ dx, float* __restrict__ partial, int64_t tokens,
                           int channels, int width) {
  const int channel =
      (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
  if (channel >= channels) return;
  const Vector<T, kWidth> angles = LoadVector<kWidth>(theta + channel);
  const int head = channel / width;
  float dtheta[kWidth] = {};
  for (int64_t token = blockIdx.y; token < tokens; token += gridDim.y) {
    const int64_t at = token * channels + channel;
    const T* from = dy + 2 * token * channels + channel + head * width;
    const int position = positions[token];
    const Vector<T, kWidth> values = LoadVector<kWidth>(x + at);
    const Vector<T, kWidth> low = LoadVector<kWidth>(from), high = LoadVector<kWidth>(from + width);
    Vector<T, kWidth> d;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float2 rotation = Rotation(position, angles[j]);
      const Silu silu(values[j]);
      d.Set(j, (low[j] * rotation.x + high[j] * rotation.y) * silu.slope);
      dtheta[j] +=
          static_cast<float>(position) * silu.value * (high[j] * rotation.x - low[j] * rotation.y);
    }
    StoreVector(dx + at, d);
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    partial[static_cast<int64_t>(blockIdx.y) * channels + channel + j] = dtheta[j];
  }
}

}  // namespace

void LrpeForwardCuda(const LrpeForwardArgs& args) {
  const char* kernel = "LrpeForward";
  const int64_t width = args.x.dim(3);
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T *x = args.x.data<T>(), *theta = args.theta.data<T>();
    T* y = args.y.data<T>();
    if (theta == nullptr) {
      LaunchElementwise<kWidth>(kernel, args.x.size(), Aligned<kWidth>(x, y), SiluForward<T>{x, y});
      return;
    }
    const RotatingForward<T> body{x,
                                  theta,
                                  args.positions.data<int32_t>(),
                                  y,
                                  args.x.dim(2) * width,
                                  static_cast<int>(width)};
    LaunchElementwise<kWidth>(kernel, args.x.size(),
                              Aligned<kWidth>(x, theta, y) && width % kWidth == 0, body);
  });
}

void LrpeBackwardCuda(const LrpeBackwardArgs& args) {
  const char* kernel = "LrpeBackward";
  const int64_t width = args.x.dim(3), channels = args.x.dim(2) * width;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T *x = args.x.data<T>(), *theta = args.theta.data<T>(), *dy = args.dy.data<T>();
    T* dx = args.dx.data<T>();
    if (theta == nullptr) {
      LaunchElementwise<kWidth>(kernel, args.x.size(), Aligned<kWidth>(x, dy, dx),
                                SiluBackward<T>{x, dy, dx});
      return;
    }
    const auto token_blocks = static_cast<unsigned>(LrpeTokenBlocks(args.x));
    float* partial = args.workspace.data<float>();
    const auto launch = [&](auto body, int each) {
      Launch(kernel, body, dim3(Pieces(channels, int64_t{kThreads} * each), token_blocks), kThreads,
             0, x, theta, args.positions.data<int32_t>(), dy, dx, partial,
             args.x.dim(0) * args.x.dim(1), static_cast<int>(channels), static_cast<int>(width));
    };
    Aligned<kWidth>(x, theta, dy, dx) && width % kWidth == 0
        ? launch(RotatingBackwardKernel<T, kWidth>, kWidth)
        : launch(RotatingBackwardKernel<T, 1>, 1);
    AddColumnSums(kernel, partial, token_blocks, channels, args.dtheta.data<float>());
  });
}

}  // namespace eyrie
