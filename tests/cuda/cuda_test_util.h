// What the tests of CUDA bodies share: test tensors on the GPU and back. A reference is the CPU
// body in float64, given what the GPU was given: values rounded to the GPU's types.
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include "core/device.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {

// A copy on the GPU, in another element type if asked. Integers stay integers.
inline OwnedTensor ToCuda(const Tensor& from, DType dtype) {
  const DType target = from.dtype == DType::kI32 ? DType::kI32 : dtype;
  const OwnedTensor cast = Cast(from, target);
  OwnedTensor result(target, from.shape, Device::kCuda);
  Copy(cast.tensor, result.tensor);
  return result;
}
inline OwnedTensor ToCuda(const Tensor& from) { return ToCuda(from, from.dtype); }

// A copy on the host, in float64; integers stay integers. Waits for the GPU.
inline OwnedTensor ToHost(const Tensor& from) {
  OwnedTensor raw(from.dtype, from.shape);
  Copy(from, raw.tensor);
  return Cast(raw.tensor, from.dtype == DType::kI32 ? DType::kI32 : DType::kF64);
}

// The numbers of `from` as `dtype` can hold them, in float64 on the host: what a reference of a
// kernel fed with ToCuda(from, dtype) should start from.
inline OwnedTensor Rounded(const Tensor& from, DType dtype) {
  return Cast(Cast(from, dtype).tensor, DType::kF64);
}

// An output full of NaN on the GPU.
inline OwnedTensor PoisonedCuda(DType dtype, Shape shape) {
  return ToCuda(PoisonedTensor(dtype, shape).tensor);
}
inline OwnedTensor ZeroCuda(DType dtype, Shape shape) {
  return OwnedTensor(dtype, shape, Device::kCuda);
}

// How far a CUDA body of this activation type may be from float64, in relative norm.
inline double Tolerance(DType dtype) { return dtype == DType::kBF16 ? 1e-2 : 1e-5; }

// Both activation types of the CUDA bodies.
inline constexpr DType kCudaTypes[] = {DType::kF32, DType::kBF16};
// Parameters of a test of tuple<DType, Sizes>: each of `sizes` in either type.
template <class Sizes>
auto InBothTypes(const Sizes& sizes) {
  return testing::Combine(testing::ValuesIn(kCudaTypes), sizes);
}

// Names a test after its parameter: a number, an element type, or sizes ("70001x20").
inline std::string NameOf(int64_t number) { return std::to_string(number); }
inline std::string NameOf(DType dtype) { return std::string(Name(dtype)); }
template <class Sizes>
std::string NameOf(const Sizes& sizes) {
  return std::apply(
      [](auto first, auto... rest) { return (NameOf(first) + ... + ("x" + NameOf(rest))); }, sizes);
}
inline constexpr auto kNameOfParameter = [](const auto& test) { return NameOf(test.param); };

}  // namespace eyrie
