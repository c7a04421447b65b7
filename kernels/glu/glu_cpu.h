// CPU body of the gated linear unit.
#pragma once

#include "kernels/glu/glu.h"
#include "kernels/partition.h"

namespace eyrie {
namespace glu {

// gelu_tanh(x) = x sigmoid(w) with w = 2 sqrt(2/pi) (x + 0.044715 x^3), by the identity
// (1 + tanh(z)) / 2 = sigmoid(2z); its slope is sigmoid(w) (1 + x (1 - sigmoid(w)) w').
template <class Real>
struct GeluTanh {
  explicit GeluTanh(Real x) {
    constexpr Real kTwice = Real(1.5957691216057308);  // 2 sqrt(2/pi)
    const Real square = x * x;
    const Real s = Sigmoid(kTwice * x * (Real(1) + Real(0.044715) * square));
    value = x * s;
    slope = s * (Real(1) + x * (Real(1) - s) * kTwice * (Real(1) + Real(0.134145) * square));
  }
  Real value, slope;
};

}  // namespace glu

template <class Real>
void GluForwardCpu(const GluForwardArgs& args) {
  const Real *gate = args.gate.data<Real>(), *value = args.value.data<Real>();
  Real* out = args.out.data<Real>();
  ForElements(args.gate.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) out[i] = glu::GeluTanh<Real>(gate[i]).value * value[i];
  });
}

template <class Real>
void GluBackwardCpu(const GluBackwardArgs& args) {
  const Real *gate = args.gate.data<Real>(), *value = args.value.data<Real>();
  const Real* dout = args.dout.data<Real>();
  Real *dgate = args.dgate.data<Real>(), *dvalue = args.dvalue.data<Real>();
  ForElements(args.gate.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const glu::GeluTanh<Real> gelu(gate[i]);
      const Real d = dout[i];
      dgate[i] = d * value[i] * gelu.slope;
      dvalue[i] = d * gelu.value;
    }
  });
}

}  // namespace eyrie
