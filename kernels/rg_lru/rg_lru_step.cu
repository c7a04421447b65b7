// The RG-LRU's forward pass of one token, as decoding takes it: nothing to scan, so it is
// elementwise.
#include "kernels/cuda_elementwise.cuh"
#include "kernels/rg_lru/rg_lru_cuda.h"
#include "kernels/rg_lru/rg_lru_math.cuh"

namespace eyrie {
namespace {

// Vectors need channels that they divide.
template <class T>
struct StepOperation {
  const T *u, *zi, *zr;
  const float* lambda;
  const int* positions;
  const float* h0;  // may be null
  T* h;
  float* h_last;  // may be null
  int64_t channels;

  template <int N>
  __device__ void At(int64_t i) const {
    const int64_t b = i / channels, c = i % channels;
    const int position = positions[b];
    const Vector<T, N> u_i = LoadVector<N>(u + i);
    const Vector<T, N> zi_i = LoadVector<N>(zi + i), zr_i = LoadVector<N>(zr + i);
    Vector<float, N> state{};
    if (h0 != nullptr) state = LoadVector<N>(h0 + i);
    Vector<T, N> rounded;
#pragma unroll
    for (int v = 0; v < N; ++v) {
      const float rate = rg_lru::Rate(lambda, static_cast<int>(c) + v);
      state.Set(v, rg_lru::Apply(rg_lru::TokenMap<false>(u_i[v], zi_i[v], zr_i[v], rate, position),
                                 state[v]));
      rounded.Set(v, state[v]);
    }
    StoreVector(h + i, rounded);
    if (h_last != nullptr) StoreVector(h_last + i, state);
  }
};

}  // namespace

void RgLruStepCuda(const RgLruForwardArgs& args) {
  DispatchCuda("RgLruStep", args.u, [&]<class T>(T) {
    const StepOperation<T> step{.u = args.u.data<T>(),
                                .zi = args.zi.data<T>(),
                                .zr = args.zr.data<T>(),
                                .lambda = args.lambda.data<float>(),
                                .positions = args.positions.data<int>(),
                                .h0 = args.h0.data<float>(),
                                .h = args.h.data<T>(),
                                .h_last = args.h_last.data<float>(),
                                .channels = args.u.dim(2)};
    constexpr int kWidth = 2;  // a batch of one then still has blocks enough
    const bool vectors = step.channels % kWidth == 0 &&
                         Aligned<kWidth>(step.u, step.zi, step.zr, step.h0, step.h, step.h_last);
    LaunchElementwise<kWidth>("RgLruStep", args.u.size(), vectors, step);
  });
}

}  // namespace eyrie
