// The gated norm on the GPU: sums with a block a row, then elementwise.
#include "kernels/cuda_elementwise.cuh"
#include "kernels/gated_norm/gated_norm_cuda.h"

namespace eyrie {
namespace {

constexpr int kThreads = 256;

// c may be null.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    RowProductsKernel(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c,
                      float* __restrict__ sums, int columns) {
  __shared__ float shared[32];
  const int64_t row = int64_t{blockIdx.x} * columns;
  float sum = 0.0f;
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x) * kWidth; at < columns; at += kThreads * kWidth) {
    const Vector<T, kWidth> left = LoadVector<kWidth>(a + row + at);
    const Vector<T, kWidth> right = LoadVector<kWidth>(b + row + at);
    Vector<T, kWidth> third;
    if (c != nullptr) third = LoadVector<kWidth>(c + row + at);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float product = left[j] * right[j];
      sum += c != nullptr ? product * third[j] : product;
    }
  }
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// 1 / sqrt(squares / width + epsilon) of the row of element i.
struct RowScale {
  const float* squares;
  int64_t columns;
  float one_over_width, epsilon;
  __device__ float operator()(int64_t i) const {
    return rsqrtf(fmaf(squares[i / columns], one_over_width, epsilon));
  }
};
template <class Args>
RowScale RowScaleOf(const Args& args) {
  return {args.squares.template data<float>(), args.x.dim(-1),
          1.0f / static_cast<float>(args.width), static_cast<float>(args.epsilon)};
}

// A vector lies in one row.
template <class T>
struct ForwardOperation {
  const T *x, *gate;
  T* out;
  RowScale scale;

  template <int N>
  __device__ void At(int64_t i) const {
    const float r = scale(i);
    const Vector<T, N> values = LoadVector<N>(x + i), gates = LoadVector<N>(gate + i);
    Vector<T, N> result;
#pragma unroll
    for (int j = 0; j < N; ++j) result.Set(j, gates[j] * values[j] * r);
    StoreVector(out + i, result);
  }
};

template <class T>
struct BackwardOperation {
  const T *x, *gate, *dout;
  T *dx, *dgate;
  const float* along;
  RowScale scale;

  template <int N>
  __device__ void At(int64_t i) const {
    const float r = scale(i);
    const float back = along[i / scale.columns] * r * r * scale.one_over_width;
    const Vector<T, N> values = LoadVector<N>(x + i), gates = LoadVector<N>(gate + i);
    const Vector<T, N> d = LoadVector<N>(dout + i);
    Vector<T, N> to_x, to_gate;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      to_x.Set(j, r * (d[j] * gates[j] - values[j] * back));
      to_gate.Set(j, d[j] * values[j] * r);
    }
    StoreVector(dx + i, to_x);
    StoreVector(dgate + i, to_gate);
  }
};

}  // namespace

void RowProductsCuda(const RowProductsArgs& args) {
  const char* kernel = "RowProducts";
  const int64_t columns = args.a.dim(-1);
  DispatchCuda(kernel, args.a, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T *a = args.a.data<T>(), *b = args.b.data<T>(), *c = args.c.data<T>();
    Launch(kernel,
           AllFitVectors<T>(columns, {a, b, c}) ? RowProductsKernel<T, kWidth>
                                                : RowProductsKernel<T, 1>,
           static_cast<unsigned>(args.sums.size()), kThreads, 0, a, b, c, args.sums.data<float>(),
           static_cast<int>(columns));
  });
}

void GatedNormForwardCuda(const GatedNormForwardArgs& args) {
  const char* kernel = "GatedNormForward";
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const ForwardOperation<T> body{args.x.data<T>(), args.gate.data<T>(), args.out.data<T>(),
                                   RowScaleOf(args)};
    LaunchElementwise<kWidth>(kernel, args.x.size(),
                              AllFitVectors<T>(args.x.dim(-1), {body.x, body.gate, body.out}),
                              body);
  });
}

void GatedNormBackwardCuda(const GatedNormBackwardArgs& args) {
  const char* kernel = "GatedNormBackward";
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const BackwardOperation<T> body{
        args.x.data<T>(),     args.gate.data<T>(),      args.dout.data<T>(), args.dx.data<T>(),
        args.dgate.data<T>(), args.along.data<float>(), RowScaleOf(args)};
    LaunchElementwise<kWidth>(
        kernel, args.x.size(),
        AllFitVectors<T>(args.x.dim(-1), {body.x, body.gate, body.dout, body.dx, body.dgate}),
        body);
  });
}

}  // namespace eyrie
