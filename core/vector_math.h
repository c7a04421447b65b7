// Transcendental functions that vectorise inside `#pragma omp simd` loops. In float32, exp and
// expm1 are inline arithmetic: nothing is spilled around a call, and a scalar remainder gives the
// same bits as a full vector. The rest goes to glibc's libmvec.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

// glibc ships vector versions of these but only announces them under -ffast-math, which would
// break NaN handling. Declaring them here is enough; accuracy is within 4 ulp.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 35)
extern "C" {
__attribute__((__simd__("notinbranch"))) double exp(double) noexcept;
__attribute__((__simd__("notinbranch"))) double expm1(double) noexcept;
__attribute__((__simd__("notinbranch"))) float tanhf(float) noexcept;
__attribute__((__simd__("notinbranch"))) double tanh(double) noexcept;
__attribute__((__simd__("notinbranch"))) float erff(float) noexcept;
__attribute__((__simd__("notinbranch"))) double erf(double) noexcept;
__attribute__((__simd__("notinbranch"))) float log1pf(float) noexcept;
__attribute__((__simd__("notinbranch"))) double log1p(double) noexcept;
__attribute__((__simd__("notinbranch"))) double sin(double) noexcept;
__attribute__((__simd__("notinbranch"))) double cos(double) noexcept;
}
#endif
#endif

namespace eyrie {

// exp(x) = scale (1 + fraction), where x = n ln 2 + r with |r| <= ln(2) / 2, scale = 2^n and
// fraction = expm1(r). The scale is kept times 2^(bias - 127), and is 0 where n = -bias, the least
// n allowed. NaN stays NaN.
struct ExpParts {
  ExpParts(float x, uint32_t bias) {
    constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = x * 1.44269504f + kShifter;
    const float n = shifted - kShifter;
    // ln 2 in two parts, the first short enough for n times it to be exact.
    const float r = (x - n * 0.693145751953125f) - n * 1.428606765330187e-06f;
    // (expm1(r) - r) / r^2, interpolated at Chebyshev nodes; expm1's relative error is 2.5e-8. In
    // Estrin's order, whose chain of dependent operations is short.
    const float square = r * r;
    const float low = 0.16666576266288757f * r + 0.5f;
    const float high = 0.00836323294788599f * r + 0.04166655242443085f;
    fraction = square * (low + square * (high + square * 0.0013926250394433737f)) + r;
    // The low bits of `shifted` hold n.
    scale = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + bias) << 23);
  }
  float scale, fraction;
};

// Overloads by element type.

// The scale is halved, because 2^128 is beyond float32 while the exponential at n = 128 need not
// be. Results below 1.7e-38 (x < -86.98) become 0.
inline float Exp(float x) {
  x = x > 89.0f ? 89.0f : x;
  const ExpParts parts(x < -87.0f ? -87.5f : x, 126);
  return 2.0f * (parts.scale * parts.fraction + parts.scale);
}
inline double Exp(double x) { return ::exp(x); }
// expm1 for x <= 0.
inline float Expm1NonPositive(float x) {
  const ExpParts parts(x < -87.0f ? -88.0f : x, 127);
  return parts.scale * parts.fraction + (parts.scale - 1.0f);
}
inline double Expm1NonPositive(double x) { return ::expm1(x); }
inline float Tanh(float x) { return ::tanhf(x); }
inline double Tanh(double x) { return ::tanh(x); }
inline float Erf(float x) { return ::erff(x); }
inline double Erf(double x) { return ::erf(x); }
inline float Log1p(float x) { return ::log1pf(x); }
inline double Log1p(double x) { return ::log1p(x); }
// In separate loops: gcc joins a sine and a cosine of one argument into a call it cannot vectorise.
inline double Sin(double x) { return ::sin(x); }
inline double Cos(double x) { return ::cos(x); }

// sqrt(x) and half its reciprocal, the root's derivative, for x >= 0; at 0 the latter is finite. In
// float32 both are arithmetic alone, since a vector unit takes as long for one division or root as
// for some thirty products: 1 / sqrt(x) within 3.5 % by an integer operation on its bits (Lomont,
// "Fast inverse square root", 2003), then a step of third order, and one of second.
template <class T>
struct SquareRoot;
template <>
struct SquareRoot<float> {
  explicit SquareRoot(float x) {
    float inverse = std::bit_cast<float>(0x5f375a86u - (std::bit_cast<uint32_t>(x) >> 1));
    float rest = 1.0f - x * inverse * inverse;
    inverse += inverse * (rest * (0.5f + 0.375f * rest));
    const float near = x * inverse, half = 0.5f * inverse;
    rest = 1.0f - near * inverse;
    root = near + 0.5f * near * rest;
    slope = half + 0.5f * half * rest;
  }
  float root, slope;
};
template <>
struct SquareRoot<double> {
  explicit SquareRoot(double x) : root(std::sqrt(x)), slope(0.5 / std::max(root, 1e-150)) {}
  double root, slope;
};

// The logistic function 1 / (1 + exp(-x)) = e / (1/4 + e) with e = exp(x) / 4, in two steps, which
// a long row takes in two loops: the chain of dependent operations of a step then fits a
// processor's window several times. In float32, results below 4e-38 (x < -86.3) become 0.
inline float SigmoidExp(float x) {
  constexpr float kMost = 86.6f;  // |n| = 125
  const ExpParts parts(std::abs(x) > kMost ? std::copysign(kMost, x) : x, 125);
  return parts.scale * parts.fraction + parts.scale;
}
inline double SigmoidExp(double x) { return 0.25 * Exp(x > 700.0 ? 700.0 : x); }
inline double SigmoidOfExp(double e) { return e / (0.25 + e); }
// A reciprocal of 1/4 + e by an integer subtraction, within 5.1 %; a step of third order; and one
// that corrects the quotient itself, so that it is 1 where adding 1/4 does not change e.
inline float SigmoidOfExp(float e) {
  const float denominator = 0.25f + e;
  float y = std::bit_cast<float>(0x7ef311c7u - std::bit_cast<uint32_t>(denominator));
  const float rest = 1.0f - denominator * y;
  y += y * (rest + rest * rest);
  const float quotient = e * y;
  return quotient + y * ((e - e * quotient) - 0.25f * quotient);
}
// The same by a division, in float32 within 2.5 units in the last place: for loops with so much
// other arithmetic that it hides the division.
template <class T>
inline T SigmoidByDivision(T e) {
  return e / (T(0.25) + e);
}
template <class T>
inline T Sigmoid(T x) {
  return SigmoidOfExp(SigmoidExp(x));
}
template <class T>
inline T Softplus(T x) {
  const T magnitude = x < T(0) ? -x : x;
  return (x > T(0) ? x : T(0)) + Log1p(Exp(-magnitude));
}

}  // namespace eyrie
