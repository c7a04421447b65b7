// Whole numbers rounded up, on CPUs and GPUs alike. For a >= 0 and b > 0.
#pragma once

#include <type_traits>

namespace eyrie {

// Pieces of `b` that cover `a`.
template <class A, class B>
constexpr std::common_type_t<A, B> CeilDiv(A a, B b) {
  return (a + b - 1) / b;
}

// The least multiple of `b` that is no less than `a`.
template <class A, class B>
constexpr std::common_type_t<A, B> RoundUp(A a, B b) {
  return CeilDiv(a, b) * b;
}

}  // namespace eyrie
