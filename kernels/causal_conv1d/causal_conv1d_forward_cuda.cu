// The convolution (causal_conv1d_rows.cuh).
#include "kernels/causal_conv1d/causal_conv1d_rows.cuh"

namespace eyrie {
namespace causal_conv1d {
namespace {

constexpr int kForwardTokens = 8;  // that a thread loads before it computes

template <class T>
struct ForwardTensors {
  const T *x, *weight, *bias;
  const int* positions;
  const T* x0;
  T *y, *x_last;
};

template <class T, int kTaps, int N, bool kSilu>
__global__ void __launch_bounds__(kLanes* kWalkers, 2)
    ForwardKernel(Sizes sizes, ForwardTensors<T> tensors) {
  LetNextStart();
  AwaitEarlier();
  __shared__ int live[kWalkers * kLongestSpan];
  constexpr int kHalo = kTaps - 1;
  const int64_t b = blockIdx.z, channels = sizes.channels;
  const int block_first = blockIdx.y * kWalkers * sizes.span;
  LoadLive(sizes, tensors.positions, b, block_first, kWalkers * sizes.span, live);
  const int64_t c = (int64_t{blockIdx.x} * kLanes + threadIdx.x) * N;
  const int first = block_first + threadIdx.y * sizes.span;
  if (c >= channels || first >= sizes.time) return;
  const int end = min(first + sizes.span, sizes.time);

  float weights[kTaps][N];
  LoadWeights(sizes, tensors.weight, c, weights);
  const auto bias = LoadVector<N>(tensors.bias + c);
  const ThreadRows<T, N> x_rows(sizes, tensors.x, tensors.x0, b, c);
  Vector<T, N> x[kHalo + kForwardTokens];  // tokens [t - kHalo, t + kForwardTokens)
#pragma unroll
  for (int i = 0; i < kHalo; ++i) x[i] = x_rows[first - kHalo + i];
  T* y = tensors.y + (b * sizes.time + first) * channels + c;
#pragma unroll 1
  for (int t = first; t < end; t += kForwardTokens) {
    x_rows.template Load<kForwardTokens>(t, x + kHalo);
    const int* sees = live + (t - block_first);
    WithConstant(AllEqual<kForwardTokens>(sees, kHalo), [&](auto constant) {
      constexpr bool kAll = decltype(constant)::value;
#pragma unroll
      for (int i = 0; i < kForwardTokens; ++i, y += channels) {
        float sum[N];
        for (int v = 0; v < N; ++v) sum[v] = bias[v];
#pragma unroll
        for (int s = 0; s < kTaps; ++s) {
          if (!kAll && s > sees[i]) continue;
          for (int v = 0; v < N; ++v) sum[v] = fmaf(weights[s][v], x[kHalo + i - s][v], sum[v]);
        }
        if constexpr (kSilu) {
          for (int v = 0; v < N; ++v) sum[v] *= Sigmoid(sum[v]);
        }
        if (kAll || sees[i] >= 0) StoreVector(y, Rounded<T>(sum));
      }
    });
#pragma unroll
    for (int i = 0; i < kHalo; ++i) x[i] = x[kForwardTokens + i];
  }

  if (tensors.x_last == nullptr || end < sizes.time) return;
  const int history = sizes.taps - 1;
  for (int k = 0; k < history; ++k) {
    StoreVector(tensors.x_last + (b * history + k) * channels + c,
                x_rows[sizes.time - history + k]);
  }
}

}  // namespace
}  // namespace causal_conv1d

void CausalConv1dForwardCuda(const CausalConv1dForwardArgs& args) {
  using namespace causal_conv1d;
  const Sizes sizes = SizesOf(args.x, args.weight);
  DispatchCuda("CausalConv1dForward", args.x, [&]<class T>(T) {
    const ForwardTensors<T> tensors{.x = args.x.data<T>(),
                                    .weight = args.weight.data<T>(),
                                    .bias = args.bias.data<T>(),
                                    .positions = args.positions.data<int>(),
                                    .x0 = args.x0.data<T>(),
                                    .y = args.y.data<T>(),
                                    .x_last = args.x_last.data<T>()};
    const bool vectors = AllFitVectors<T>(sizes.channels, {tensors.x, tensors.weight, tensors.bias,
                                                           tensors.x0, tensors.y, tensors.x_last});
    DispatchWidth(sizes.taps, vectors, args.silu, [&](auto taps, auto width, auto silu) {
      LaunchSpans("CausalConv1dForward", ForwardKernel<T, taps(), width(), silu()>, sizes, width(),
                  0, tensors);
    });
  });
}

}  // namespace eyrie
