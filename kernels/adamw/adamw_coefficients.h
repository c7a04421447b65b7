// The scalars of one AdamW step, as every body reads them.
#pragma once

#include <cmath>

#include "kernels/adamw/adamw.h"

namespace eyrie {

// Computed in float64: 1 - beta^step would lose half its digits in float32 at the first steps.
template <class T>
struct AdamWCoefficients {
  explicit AdamWCoefficients(const AdamWArgs& args)
      : grad_scale(static_cast<T>(args.grad_scale)),
        beta1(static_cast<T>(args.beta1)),
        beta2(static_cast<T>(args.beta2)),
        rest1(static_cast<T>(1.0 - args.beta1)),
        rest2(static_cast<T>(1.0 - args.beta2)),
        m_rate(static_cast<T>(args.rate / Correction(args.beta1, args.step))),
        v_scale(static_cast<T>(1.0 / Correction(args.beta2, args.step))),
        epsilon(static_cast<T>(args.epsilon)),
        decay(static_cast<T>(args.rate * args.weight_decay)) {}

  static double Correction(double beta, int64_t step) {
    return 1.0 - std::pow(beta, static_cast<double>(step));
  }

  T grad_scale, beta1, beta2, rest1, rest2, m_rate, v_scale, epsilon, decay;
};

}  // namespace eyrie
