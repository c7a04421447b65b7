// Threading and vectorisation of the CPU backend: OpenMP loops over independent pieces, libmvec
// for transcendental functions inside `#pragma omp simd` loops.
#pragma once

#include <cmath>
#include <cstdint>

// glibc ships vector versions of these but only announces them under -ffast-math, which would
// break NaN handling. Declaring them here is enough; accuracy is within 4 ulp.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 35)
extern "C" {
__attribute__((__simd__("notinbranch"))) float expf(float) noexcept;
__attribute__((__simd__("notinbranch"))) double exp(double) noexcept;
__attribute__((__simd__("notinbranch"))) float expm1f(float) noexcept;
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

// Overloads by element type that vectorise inside `#pragma omp simd`.
inline float Exp(float x) { return ::expf(x); }
inline double Exp(double x) { return ::exp(x); }
inline float Expm1(float x) { return ::expm1f(x); }
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

// Calls body(i) for i in [0, count), spread over the threads of this rank. Each i must be
// independent of the others, so that results do not depend on the number of threads.
template <class Body>
void ParallelFor(int64_t count, const Body& body) {
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) body(i);
}

void SetThreads(int threads);
int Threads();

}  // namespace eyrie
