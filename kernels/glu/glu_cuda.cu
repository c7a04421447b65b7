#include "kernels/column_sum.cuh"
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

// The gradients of a vector of elements.
template <class Act, class T, int N>
__device__ __forceinline__ void Differentiate(const Vector<T, N>& gate, const Vector<T, N>& value,
                                              const Vector<T, N>& dout, Vector<T, N>& dgate,
                                              Vector<T, N>& dvalue) {
  const auto at = [&](int i) {
    const Act act(gate[i]);
    return float2{dout[i] * value[i] * act.slope, dout[i] * act.value};
  };
  if constexpr (N == 1) {
    const float2 both = at(0);
    dgate.Set(0, both.x);
    dvalue.Set(0, both.y);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const float2 even = at(i), odd = at(i + 1);
      dgate.SetPair(i, even.x, odd.x);
      dvalue.SetPair(i, even.y, odd.y);
    }
  }
}

template <class T, class Act>
struct BackwardOperation {
  const T *gate, *value, *dout;
  T *dgate, *dvalue;

  template <int N>
  __device__ void At(int64_t i) const {
    const Vector<T, N> g = LoadVector<N>(gate + i), v = LoadVector<N>(value + i);
    const Vector<T, N> d = LoadVector<N>(dout + i);
    Vector<T, N> dg, dv;
    Differentiate<Act>(g, v, d, dg, dv);
    StoreVector(dgate + i, dg);
    StoreVector(dvalue + i, dv);
  }
};

// Stores to global memory by one instruction, also a vector that is read again, which StoreVector
// may store element by element.
template <class T, int N>
__device__ __forceinline__ void StoreWhole(T* to, const Vector<T, N>& vector) {
  if constexpr (sizeof(vector) == sizeof(uint4)) {
    uint4 word;
    memcpy(&word, &vector, sizeof(word));
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
  } else {
    StoreVector(to, vector);
  }
}

// With the sums of each chunk's rows, as in ColumnSumKernel: where the pointers are not null,
// dgate_sums and dvalue_sums [gridDim.x, width] := the sums of what is stored. Loads of kUnroll
// rows are in flight before the first of them is stored to: dvalue may be dout.
constexpr int kSumWarps = 8;
template <class T, class Act, int kWidth>
__global__ void __launch_bounds__(32 * kSumWarps, 32 / kSumWarps)
    BackwardSumsKernel(const BackwardOperation<T, Act> tensors, int64_t rows, int64_t chunk,
                       int64_t width, float* __restrict__ dgate_sums,
                       float* __restrict__ dvalue_sums) {
  constexpr int kColumns = 32 * kWidth, kUnroll = 2;
  __shared__ float shared[2][kSumWarps][kColumns];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_column = int64_t{blockIdx.y} * kColumns;
  const int64_t column = first_column + lane * kWidth;
  const int64_t begin = int64_t{blockIdx.x} * chunk, origin = begin * width + column;
  const int count = static_cast<int>(min(rows - begin, chunk)), pitch = static_cast<int>(width);

  float dgate_sum[kWidth] = {}, dvalue_sum[kWidth] = {};
  if (column < width) {
    for (int row = warp; row < count; row += kSumWarps * kUnroll) {
      Vector<T, kWidth> gate[kUnroll], value[kUnroll], dout[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (row + u * kSumWarps >= count) continue;
        const int64_t at = origin + int64_t{row + u * kSumWarps} * pitch;
        gate[u] = LoadVector<kWidth>(tensors.gate + at);
        value[u] = LoadVector<kWidth>(tensors.value + at);
        dout[u] = LoadVector<kWidth>(tensors.dout + at);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (row + u * kSumWarps >= count) continue;
        const int64_t at = origin + int64_t{row + u * kSumWarps} * pitch;
        Vector<T, kWidth> dgate, dvalue;
        Differentiate<Act>(gate[u], value[u], dout[u], dgate, dvalue);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          dgate_sum[i] += dgate[i];
          dvalue_sum[i] += dvalue[i];
        }
        StoreWhole(tensors.dgate + at, dgate);
        StoreWhole(tensors.dvalue + at, dvalue);
      }
    }
  }

  const auto keep = [&](float* sums, const float(&sum)[kWidth], auto& scratch) {
    if (sums == nullptr) return;
    AddWarps(sum, scratch, width - first_column, [&](int c, float total) {
      sums[int64_t{blockIdx.x} * width + first_column + c] = total;
    });
  };
  keep(dgate_sums, dgate_sum, shared[0]);
  keep(dvalue_sums, dvalue_sum, shared[1]);
}

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

template <class T, class Act>
void BackwardSums(const GluBackwardArgs& args, const BackwardOperation<T, Act>& body) {
  constexpr int kWidth = kVectorWidth<T>;
  const char* kernel = "GluBackward";
  const int64_t width = args.gate.dim(-1), rows = args.gate.size() / width;
  if (rows == 0) return;
  const int64_t chunk = ColumnSumChunk(rows, width);
  const unsigned chunks = Pieces(rows, chunk);
  float* workspace = args.workspace.data<float>();
  float* dgate_sums = args.dgate_sum.defined() ? workspace : nullptr;
  float* dvalue_sums = nullptr;  // after those of dgate, where there are such
  if (args.dvalue_sum.defined()) dvalue_sums = workspace + (dgate_sums ? chunks * width : 0);
  const bool vectors =
      AllFitVectors<T>(width, {body.gate, body.value, body.dout, body.dgate, body.dvalue});
  Launch(kernel, vectors ? BackwardSumsKernel<T, Act, kWidth> : BackwardSumsKernel<T, Act, 1>,
         dim3(chunks, Pieces(width, 32 * (vectors ? kWidth : 1))), 32 * kSumWarps, 0, body, rows,
         chunk, width, dgate_sums, dvalue_sums);
  const auto add = [&](const float* sums, const Tensor& to) {
    if (to.defined()) AddColumnSums(kernel, sums, chunks, width, to.data<float>());
  };
  add(dgate_sums, args.dgate_sum);
  add(dvalue_sums, args.dvalue_sum);
}

template <class Act>
void Backward(const GluBackwardArgs& args) {
  DispatchCuda("GluBackward", args.gate, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const BackwardOperation<T, Act> body{args.gate.data<T>(), args.value.data<T>(),
                                         args.dout.data<T>(), args.dgate.data<T>(),
                                         args.dvalue.data<T>()};
    if (args.dgate_sum.defined() || args.dvalue_sum.defined()) return BackwardSums(args, body);
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
