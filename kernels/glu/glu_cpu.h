// CPU body of the gated linear unit.
#pragma once

#include "kernels/elementwise/elementwise_cpu.h"
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

template <class Real>
struct GeluErf {
  explicit GeluErf(Real x) {
    constexpr Real kInverseRoot = Real(0.7071067811865476);  // 1 / sqrt(2)
    constexpr Real kDensity = Real(0.3989422804014327);      // 1 / sqrt(2 pi)
    const Real distribution = Real(0.5) * (Real(1) + Erf(x * kInverseRoot));
    value = x * distribution;
    slope = distribution + x * kDensity * Exp(Real(-0.5) * x * x);
  }
  Real value, slope;
};

template <class Real>
struct Silu {
  explicit Silu(Real x) {
    const Real s = Sigmoid(x);
    value = x * s;
    slope = s * (Real(1) + x * (Real(1) - s));
  }
  Real value, slope;
};

template <class Real>
struct Logistic {
  explicit Logistic(Real x) : value(Sigmoid(x)), slope(value * (Real(1) - value)) {}
  Real value, slope;
};

template <class Real>
struct None {
  explicit None(Real x) : value(x) {}
  Real value, slope = 1;
};

template <class Act, class Real>
void Forward(const GluForwardArgs& args) {
  const Real *gate = args.gate.data<Real>(), *value = args.value.data<Real>();
  Real* out = args.out.data<Real>();
  ForElements(args.gate.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) out[i] = Act(gate[i]).value * value[i];
  });
}

template <class Act, class Real>
void Backward(const GluBackwardArgs& args) {
  const Real *gate = args.gate.data<Real>(), *value = args.value.data<Real>();
  const Real* dout = args.dout.data<Real>();
  Real *dgate = args.dgate.data<Real>(), *dvalue = args.dvalue.data<Real>();
  ForElements(args.gate.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const Act act(gate[i]);
      const Real d = dout[i];
      dgate[i] = d * value[i] * act.slope;
      dvalue[i] = d * act.value;
    }
  });
  if (args.dgate_sum.defined()) SumRowsCpu<Real>(args.dgate, args.dgate_sum);
  if (args.dvalue_sum.defined()) SumRowsCpu<Real>(args.dvalue, args.dvalue_sum);
}

}  // namespace glu

template <class Real>
void GluForwardCpu(const GluForwardArgs& args) {
  switch (args.activation) {
    case Activation::kGeluTanh: return glu::Forward<glu::GeluTanh<Real>, Real>(args);
    case Activation::kGeluErf: return glu::Forward<glu::GeluErf<Real>, Real>(args);
    case Activation::kSilu: return glu::Forward<glu::Silu<Real>, Real>(args);
    case Activation::kSigmoid: return glu::Forward<glu::Logistic<Real>, Real>(args);
    case Activation::kNone: return glu::Forward<glu::None<Real>, Real>(args);
  }
}

template <class Real>
void GluBackwardCpu(const GluBackwardArgs& args) {
  switch (args.activation) {
    case Activation::kGeluTanh: return glu::Backward<glu::GeluTanh<Real>, Real>(args);
    case Activation::kGeluErf: return glu::Backward<glu::GeluErf<Real>, Real>(args);
    case Activation::kSilu: return glu::Backward<glu::Silu<Real>, Real>(args);
    case Activation::kSigmoid: return glu::Backward<glu::Logistic<Real>, Real>(args);
    case Activation::kNone: return glu::Backward<glu::None<Real>, Real>(args);
  }
}

}  // namespace eyrie
