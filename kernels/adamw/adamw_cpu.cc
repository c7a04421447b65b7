#include "kernels/adamw/adamw_cpu.h"

#include <cmath>
#include <vector>

#include "core/threads.h"
#include "kernels/partition.h"

namespace eyrie {

template <class T>
void AdamWCpu(const AdamWArgs& args) {
  T* param = args.param.data<T>();
  const T* grad = args.grad.data<T>();
  T* m = args.m.data<T>();
  T* v = args.v.data<T>();
  // Scalars in float64: 1 - beta^step loses half its digits in float32 at the first steps.
  const double step = static_cast<double>(args.step);
  const double m_correction = 1.0 - std::pow(args.beta1, step);
  const double v_correction = 1.0 - std::pow(args.beta2, step);
  const T beta1 = static_cast<T>(args.beta1);
  const T beta2 = static_cast<T>(args.beta2);
  const T one_minus_beta1 = static_cast<T>(1.0 - args.beta1);
  const T one_minus_beta2 = static_cast<T>(1.0 - args.beta2);
  const T m_rate = static_cast<T>(args.rate / m_correction);
  const T v_scale = static_cast<T>(1.0 / v_correction);
  const T epsilon = static_cast<T>(args.epsilon);
  const T decay = static_cast<T>(args.rate * args.weight_decay);
  const T grad_scale = static_cast<T>(args.grad_scale);
  ForElements(args.param.size(), [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const T g = grad[i] * grad_scale;
      m[i] = beta1 * m[i] + one_minus_beta1 * g;
      v[i] = beta2 * v[i] + one_minus_beta2 * (g * g);
      param[i] -= m_rate * m[i] / (std::sqrt(v[i] * v_scale) + epsilon) + decay * param[i];
    }
  });
}

template <class T>
double SumOfSquaresCpu(const Tensor& values) {
  const T* x = values.data<T>();
  const int64_t count = values.size();
  std::vector<double> pieces(static_cast<size_t>(CeilDiv(count, kSerialWork)));
  ForElements(count, [&](int64_t begin, int64_t end) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const double value = static_cast<double>(x[i]);
      sum += value * value;
    }
    pieces[static_cast<size_t>(begin / kSerialWork)] = sum;
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
