// What the tests of LayerNorm's and RMSNorm's CUDA bodies share.
#pragma once

#include "tests/cuda/cuda_test_util.h"
#include "tests/kernels/norm_problem.h"

namespace eyrie {

template <class Problem>
Problem NormOnCuda(const Problem& from, DType dtype) {
  return CopyNorm(
      from, [&](const Tensor& tensor) { return ToCuda(tensor, dtype); },
      [](const Tensor& tensor) { return ToCuda(tensor, DType::kF32); });
}

// Both passes over x of this shape, twice on the GPU and once on the CPU.
template <class Problem>
void CompareNorm(DType dtype, Shape shape, bool with_residual, TestRandom& random) {
  SCOPED_TRACE(StrCat(shape.ToString(), " residual ", with_residual));
  auto source = RandomNorm<Problem>(DType::kF32, shape, random);
  source.dweight = RandomTensor(DType::kF32, source.weight.tensor.shape, random);
  const Problem here = CopyNorm(
      source, [&](const Tensor& tensor) { return Rounded(tensor, dtype); },
      [](const Tensor& tensor) { return Cast(tensor, DType::kF64); });
  const Problem one = NormOnCuda(source, dtype), two = NormOnCuda(source, dtype);
  for (const Problem* p : {&here, &one, &two}) RunNorm(*p, with_residual);
  for (const auto which : Problem::kOutputs) {
    const OwnedTensor result = ToHost((one.*which).tensor);
    // Gradients may cancel: their errors are measured by the size of what they are made of.
    const double floor = std::sqrt(static_cast<double>(result.tensor.size()));
    const bool activations = which == &NormTensors::y || which == &NormTensors::dx;
    EXPECT_LT(RelativeError(result.tensor, (here.*which).tensor, floor),
              activations ? Tolerance(dtype) : 1e-5);
    EXPECT_TRUE(BitwiseEqual(result.tensor, ToHost((two.*which).tensor).tensor));
  }
}

// dx may be the memory of dresidual.
template <class Problem>
void ReplaceTheResidual(DType dtype, Shape shape, TestRandom& random) {
  const Problem p = NormOnCuda(RandomNorm<Problem>(DType::kF32, shape, random), dtype);
  RunNorm(p, true);
  auto in_place = p.backward(true);
  in_place.dx = in_place.dresidual;
  Problem::Run(in_place);
  EXPECT_TRUE(BitwiseEqual(ToHost(p.dx.tensor).tensor, ToHost(p.dresidual.tensor).tensor));
}

}  // namespace eyrie
