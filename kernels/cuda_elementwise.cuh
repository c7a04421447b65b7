// Flat elementwise kernels. An operation is a struct of pointers and scalars with
//
//   template <int N> __device__ void At(int64_t i) const;
//
// which computes elements [i, i + N) through vectors of N. A thread takes one vector: with two
// inputs or more, all the threads of a multiprocessor together keep memory busy.
#pragma once

#include "core/early_launch.cuh"
#include "kernels/cuda_math.cuh"

namespace eyrie {

inline constexpr int kElementwiseThreads = 256;

template <int kWidth, class Operation>
__global__ void __launch_bounds__(kElementwiseThreads)
    ElementwiseKernel(const Operation operation, int64_t count) {
  LetNextStart();
  AwaitEarlier();
  const int64_t begin =
      (int64_t{blockIdx.x} * kElementwiseThreads + static_cast<int64_t>(threadIdx.x)) * kWidth;
  if (begin + kWidth <= count) {
    operation.template At<kWidth>(begin);
  } else {
    for (int64_t i = begin; i < count; ++i) operation.template At<1>(i);
  }
}

// `aligned`: all pointers are, for vectors of kWidth elements.
template <int kWidth, class Operation>
void LaunchElementwise(const char* name, int64_t count, bool aligned, const Operation& operation) {
  if (aligned) {
    LaunchEarly(name, ElementwiseKernel<kWidth, Operation>,
                Pieces(count, int64_t{kElementwiseThreads} * kWidth), kElementwiseThreads, 0,
                operation, count);
  } else {
    LaunchEarly(name, ElementwiseKernel<1, Operation>, Pieces(count, kElementwiseThreads),
                kElementwiseThreads, 0, operation, count);
  }
}

}  // namespace eyrie
