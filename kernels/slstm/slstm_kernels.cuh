// What the CUDA bodies of the sLSTM share: views of their arguments and the arithmetic of a cell.
// B sequences, T tokens, H heads of d units.
#pragma once

#include "kernels/cuda_math.cuh"
#include "kernels/slstm/slstm.h"

namespace eyrie {

// Null where a state is absent.
struct SlstmStateView {
  explicit SlstmStateView(const SlstmState& state)
      : y(state.y.data<float>()),
        c(state.c.data<float>()),
        n(state.n.data<float>()),
        m(state.m.data<float>()) {}
  float *y, *c, *n, *m;  // [B, H, d]
};

struct SlstmSizes {
  int batch, tokens, heads, units;

  // Of a unit in [B, T, H, d], and of gate g of it in [B, T, H, 4, d].
  __device__ int64_t At(int b, int t, int h, int unit) const {
    return ((static_cast<int64_t>(b) * tokens + t) * heads + h) * units + unit;
  }
  __device__ int64_t GateAt(int b, int t, int h, int gate, int unit) const {
    return (((static_cast<int64_t>(b) * tokens + t) * heads + h) * 4 + gate) * units + unit;
  }
  // Of a unit in a state, and of the gate that r joins with unit `from`.
  __device__ int64_t StateAt(int b, int h, int unit) const {
    return (static_cast<int64_t>(b) * heads + h) * units + unit;
  }
  __device__ int64_t RecurrentAt(int h, int from, int gate, int unit) const {
    return ((static_cast<int64_t>(h) * units + from) * 4 + gate) * units + unit;
  }
};

template <class T>
struct SlstmForwardView {
  SlstmSizes sizes;
  const T *x, *r;
  const float* bias;
  const int32_t* positions;
  bool exponential_forget;
  SlstmStateView before, after;
  T* y;
  float* cells;  // [3, B, H, d]: c, n and m between two tokens, where no kernel holds them

  __device__ bool Starts(int b, int t) const {
    return positions[int64_t{b} * sizes.tokens + t] == 0;
  }
};

template <class T>
struct SlstmBackwardView {
  SlstmSizes sizes;
  const T* r;
  const int32_t* positions;
  SlstmStateView before, dafter, dbefore;
  // Of each token: i, f, z and o as they enter the cell [B, T, H, 4, d]; the derivative of log_f by
  // its pre-activation, and c and n after the token [B, T, H, d].
  const float *gates, *slope, *c, *n;
  const T* dy;
  T* dx;
  float*
      carry;  // [2, B, H, d]: gradients of c and n between two tokens, where no kernel holds them

  __device__ bool Starts(int b, int t) const {
    return positions[int64_t{b} * sizes.tokens + t] == 0;
  }
};

struct SlstmCell {
  float c, n, m;
};

// What a cell is fed with at a token, exponential gates stabilised.
struct SlstmGates {
  float i, f, z, o;
};

// Takes the cell over a token with these pre-activations of i, f, z and o.
__device__ __forceinline__ SlstmGates SlstmStep(bool exponential_forget, const float (&p)[4],
                                                SlstmCell& cell) {
  const float kept = (exponential_forget ? p[1] : -Softplus(-p[1])) + cell.m;
  // Comparisons rather than fmaxf and fminf, which drop a NaN.
  const float larger = kept > p[0] ? kept : p[0];
  const float m = cell.n == 0.0f ? p[0] : larger;
  // Above 0 only where nothing is kept.
  const float log_f = kept - m > 0.0f ? 0.0f : kept - m;
  const SlstmGates gates{expf(p[0] - m), expf(log_f), 2.0f * Sigmoid(2.0f * p[2]) - 1.0f,
                         Sigmoid(p[3])};
  cell = {gates.f * cell.c + gates.i * gates.z, gates.f * cell.n + gates.i, m};
  return gates;
}

// One token backward. In: `dy`, the gradient of y by every way, and those of c and n after the
// token in `dc` and `dn`. Out: those of the pre-activations, and of c and n before the token.
__device__ __forceinline__ void SlstmGradStep(const SlstmGates& gates, float slope, float c_before,
                                              float n_before, float c, float n, float dy, float& dc,
                                              float& dn, float (&dp)[4]) {
  const float inverse = 1.0f / n;
  const float share = dy * gates.o * inverse;
  const float to_c = dc + share, to_n = dn - share * c * inverse;
  dp[0] = gates.i * (gates.z * to_c + to_n);
  dp[1] = gates.f * (c_before * to_c + n_before * to_n) * slope;
  dp[2] = gates.i * to_c * (1.0f - gates.z * gates.z);
  dp[3] = share * c * (1.0f - gates.o);
  dc = gates.f * to_c;
  dn = gates.f * to_n;
}

// The persistent bodies: clusters of blocks that hold r and pass each other y, or its gradients.
bool SlstmFitsCluster(const SlstmForwardView<__nv_bfloat16>& view);
bool SlstmFitsCluster(const SlstmBackwardView<__nv_bfloat16>& view);
void SlstmForwardCluster(const SlstmForwardView<__nv_bfloat16>& view);
void SlstmBackwardCluster(const SlstmBackwardView<__nv_bfloat16>& view);

// The plain ones: a launch for each token, which reads r from the L2 cache.
template <class T>
void SlstmForwardPlain(const SlstmForwardView<T>& view);
template <class T>
void SlstmBackwardPlain(const SlstmBackwardView<T>& view);

}  // namespace eyrie
