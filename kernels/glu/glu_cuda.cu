#include "kernels/cuda_elementwise.cuh"
#include "kernels/glu/glu_cuda.h"

namespace eyrie {
namespace {

// As on the CPU (glu_cpu.h): gelu_tanh(x) = x sigmoid(w).
struct GeluTanh {
  __device__ __forceinline__ explicit GeluTanh(float x) {
    constexpr float kTwice = 1.5957691216057308f;  // 2 sqrt(2/pi)
    const float square = x * x;
    const float s = Sigmoid(kTwice * x * (1.0f + 0.044715f * square));
    value = x * s;
    slope = s + value * (1.0f - s) * kTwice * (1.0f + 0.134145f * square);
  }
  float value, slope;
};

struct GeluErf {
  __device__ __forceinline__ explicit GeluErf(float x) {
    // By the complement, which does not cancel far below 0.
    const float distribution = 0.5f * erfcf(-0.7071067811865476f * x);
    value = x * distribution;
    slope = distribution + x * 0.3989422804014327f * __expf(-0.5f * x * x);
  }
  float value, slope;
};

struct Silu {
  __device__ __forceinline__ explicit Silu(float x) {
    const float s = Sigmoid(x);
    value = x * s;
    slope = s * (1.0f + x * (1.0f - s));
  }
  float value, slope;
};

struct Logistic {
  __device__ __forceinline__ explicit Logistic(float x)
      : value(Sigmoid(x)), slope(value * (1.0f - value)) {}
  float value, slope;
};

struct None {
  __device__ __forceinline__ explicit None(float x) : value(x) {}
  float value, slope = 1.0f;
};

template <class T, class Act>
struct ForwardOperation {
  const T *gate, *value;
  T* out;

  template <int N>
  __device__ void At(int64_t i) const {
    const Vector<T, N> g = LoadVector<N>(gate + i), v = LoadVector<N>(value + i);
    Vector<T, N> result;
#pragma unroll
    for (int j = 0; j < N; ++j) result.Set(j, Act(g[j]).value * v[j]);
    StoreVector(out + i, result);
  }
};

template <class T, class Act>
struct BackwardOperation {
  const T *gate, *value, *dout;
  T *dgate, *dvalue;

  template <int N>
  __device__ void At(int64_t i) const {
    const Vector<T, N> g = LoadVector<N>(gate + i), v = LoadVector<N>(value + i);
    const Vector<T, N> d = LoadVector<N>(dout + i);
    Vector<T, N> dg, dv;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const Act act(g[j]);
      dg.Set(j, d[j] * v[j] * act.slope);
      dv.Set(j, d[j] * act.value);
    }
    StoreVector(dgate + i, dg);
    StoreVector(dvalue + i, dv);
  }
};

template <class Act>
void Forward(const GluForwardArgs& args) {
  DispatchCuda("GluForward", args.gate, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const ForwardOperation<T, Act> body{args.gate.data<T>(), args.value.data<T>(),
                                        args.out.data<T>()};
    LaunchElementwise<kWidth>("GluForward", args.gate.size(),
                              Aligned<kWidth>(body.gate, body.value, body.out), body);
  });
}

template <class Act>
void Backward(const GluBackwardArgs& args) {
  DispatchCuda("GluBackward", args.gate, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const BackwardOperation<T, Act> body{args.gate.data<T>(), args.value.data<T>(),
                                         args.dout.data<T>(), args.dgate.data<T>(),
                                         args.dvalue.data<T>()};
    LaunchElementwise<kWidth>(
        "GluBackward", args.gate.size(),
        Aligned<kWidth>(body.gate, body.value, body.dout, body.dgate, body.dvalue), body);
  });
}

}  // namespace

void GluForwardCuda(const GluForwardArgs& args) {
  switch (args.activation) {
    case Activation::kGeluTanh: return Forward<GeluTanh>(args);
    case Activation::kGeluErf: return Forward<GeluErf>(args);
    case Activation::kSilu: return Forward<Silu>(args);
    case Activation::kSigmoid: return Forward<Logistic>(args);
    case Activation::kNone: return Forward<None>(args);
  }
}

void GluBackwardCuda(const GluBackwardArgs& args) {
  switch (args.activation) {
    case Activation::kGeluTanh: return Backward<GeluTanh>(args);
    case Activation::kGeluErf: return Backward<GeluErf>(args);
    case Activation::kSilu: return Backward<Silu>(args);
    case Activation::kSigmoid: return Backward<Logistic>(args);
    case Activation::kNone: return Backward<None>(args);
  }
}

}  // namespace eyrie
