#include "kernels/adamw/adamw_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/round.h"
#include "core/threads.h"
#include "kernels/adamw/adamw_coefficients.h"
#include "kernels/partition.h"

namespace eyrie {

namespace {

template <class T>
void UpdateRange(const AdamWCoefficients<T> c, T decay, int64_t n, const T* grad, T* m, T* v,
                 T* param) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T g = grad[i] * c.grad_scale;
    m[i] = c.beta1 * m[i] + c.rest1 * g;
    v[i] = c.beta2 * v[i] + c.rest2 * (g * g);
    param[i] -= c.m_rate * m[i] / (std::sqrt(v[i] * c.v_scale) + c.epsilon) + decay * param[i];
  }
}

bool Decays(const int32_t* decays, int64_t group) {
  return decays == nullptr || (static_cast<uint32_t>(decays[group / 32]) >> group % 32 & 1) != 0;
}

template <class T>
double RangeSumOfSquares(const T* x, int64_t n) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const double value = static_cast<double>(x[i]);
    sum += value * value;
  }
  return sum;
}

}  // namespace

template <class T>
void AdamWCpu(const AdamWArgs& args) {
  const AdamWCoefficients<T> coefficients(args);
  const T* grad = args.grad.data<T>();
  T* m = args.m.data<T>();
  T* v = args.v.data<T>();
  T* param = args.param.data<T>();
  T* copy = args.copy.data<T>();
  const int32_t* decays = args.decays.data<int32_t>();
  static_assert(kSerialWork % kDecayGroup == 0);
  ForElements(args.param.size(), [&](int64_t begin, int64_t end) {
    for (int64_t from = begin, to; from < end; from = to) {  // which decays as one
      const bool decayed = Decays(decays, from / kDecayGroup);
      to = from;
      do to = std::min(end, to + kDecayGroup);
      while (to < end && (decays == nullptr || Decays(decays, to / kDecayGroup) == decayed));
      UpdateRange(coefficients, decayed ? coefficients.decay : T(0), to - from, grad + from,
                  m + from, v + from, param + from);
    }
    if (copy != nullptr) std::copy(param + begin, param + end, copy + begin);
  });
}

template <class T>
double SumOfSquaresCpu(const Tensor& values) {
  const T* x = values.data<T>();
  std::vector<double> pieces(static_cast<size_t>(CeilDiv(values.size(), kSerialWork)));
  ForElements(values.size(), [&](int64_t begin, int64_t end) {
    pieces[static_cast<size_t>(begin / kSerialWork)] = RangeSumOfSquares(x + begin, end - begin);
  });
  double sum = 0.0;
  for (double piece : pieces) sum += piece;
  return sum;
}

template void AdamWCpu<float>(const AdamWArgs&);
template void AdamWCpu<double>(const AdamWArgs&);
template double SumOfSquaresCpu<float>(const Tensor&);
template double SumOfSquaresCpu<double>(const Tensor&);

}  // namespace eyrie
