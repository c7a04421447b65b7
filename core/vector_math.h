// Transcendental functions that vectorise inside `#pragma omp simd` loops. In float32, exp and
// expm1 are inline arithmetic: nothing is spilled around a call, and a scalar remainder gives the
// same bits as a full vector. The rest goes to glibc's libmvec.
#pragma once

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
__attribute__((__simd__("notinbranch"))) float log1pf(float) noexcept;
__attribute__((__simd__("notinbranch"))) double log1p(double) noexcept;
__attribute__((__simd__("notinbranch"))) double sin(double) noexcept;
__attribute__((__simd__("notinbranch"))) double cos(double) noexcept;
}
#endif
#endif

namespace eyrie {

// exp(x) = 2 (half_scale + half_scale * fraction), where x = n ln 2 + r with |r| <= ln(2) / 2,
// half_scale = 2^(n-1) and fraction = expm1(r). Half, because 2^128 is beyond float32 while the
// exponential at n = 128 need not be. Results below 1.7e-38 (x < -86.98) become 0; NaN stays NaN.
struct ExpParts {
  explicit ExpParts(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -87.0f ? -87.5f : x;
    constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = x * 1.44269504f + kShifter;
    const float n = shifted - kShifter;
    // ln 2 in two parts, the first short enough for n times it to be exact.
    const float r = (x - n * 0.693145751953125f) - n * 1.428606765330187e-06f;
    // (expm1(r) - r) / r^2, interpolated at Chebyshev nodes; expm1's relative error is 2.5e-8.
    float tail = 0.0013926250394433737f;
    tail = tail * r + 0.00836323294788599f;
    tail = tail * r + 0.04166655242443085f;
    tail = tail * r + 0.16666576266288757f;
    tail = tail * r + 0.5f;
    fraction = tail * (r * r) + r;
    // The low bits of `shifted` hold n; 126 is the bias of the exponent, less one.
    const uint32_t exponent = std::bit_cast<uint32_t>(shifted) + 126u;
    half_scale = std::bit_cast<float>(exponent << 23);
  }
  float half_scale, fraction;
};

// Overloads by element type.
inline float Exp(float x) {
  const ExpParts parts(x);
  return 2.0f * (parts.half_scale * parts.fraction + parts.half_scale);
}
inline double Exp(double x) { return ::exp(x); }
inline float Expm1(float x) {
  const ExpParts parts(x);
  return 2.0f * (parts.half_scale * parts.fraction + (parts.half_scale - 0.5f));
}
inline double Expm1(double x) { return ::expm1(x); }
inline float Tanh(float x) { return ::tanhf(x); }
inline double Tanh(double x) { return ::tanh(x); }
inline float Log1p(float x) { return ::log1pf(x); }
inline double Log1p(double x) { return ::log1p(x); }
// In separate loops: gcc joins a sine and a cosine of one argument into a call it cannot vectorise.
inline double Sin(double x) { return ::sin(x); }
inline double Cos(double x) { return ::cos(x); }

template <class T>
inline T Sigmoid(T x) {
  return T(1) / (T(1) + Exp(-x));
}
template <class T>
inline T Softplus(T x) {
  const T magnitude = x < T(0) ? -x : x;
  return (x > T(0) ? x : T(0)) + Log1p(Exp(-magnitude));
}

}  // namespace eyrie
