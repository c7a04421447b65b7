// What code of a CUDA build shares: error checks, the compute stream, launches. Included by *.cu
// files alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/tensor.h"

namespace eyrie {

inline void CheckCuda(cudaError_t code, const char* what) {
  if (code != cudaSuccess) ThrowFailure(what, ": ", cudaGetErrorString(code));
}
#define EYRIE_CUDA_CHECK(call) ::eyrie::CheckCuda(call, #call)

// The stream that orders all computing of this process. Kernels, copies and the arena follow it.
inline cudaStream_t ComputeStream() { return cudaStreamPerThread; }

// Launches on the compute stream, with `shared` bytes of dynamic shared memory. Use
// AllowSharedMemory once where a kernel needs more than 48 KiB of it.
template <class... Parameters, class... Arguments>
void Launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  kernel<<<grid, block, shared, ComputeStream()>>>(std::forward<Arguments>(arguments)...);
  CheckCuda(cudaGetLastError(), name);
}
// Bytes of shared memory that a block can have: 227 KiB on Hopper, 99 or 163 on GPUs before it.
size_t MostSharedMemory();
inline constexpr size_t kA100SharedMemory = 163 * 1024;
// Throws where the GPU has less.
void RequireSharedMemory(size_t bytes);
template <class Kernel>
void AllowSharedMemory(Kernel kernel, size_t bytes) {
  RequireSharedMemory(bytes);
  EYRIE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
}

// Whether this kernel's code here was compiled for Hopper or later: not so, on any GPU, where it
// comes from the PTX of an earlier one.
template <class Kernel>
bool CompiledForHopper(Kernel kernel) {
  cudaFuncAttributes attributes{};
  EYRIE_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  return attributes.ptxVersion >= 90;
}

// Streaming multiprocessors of the selected GPU.
int Multiprocessors();

// The element type that device code computes on: __nv_bfloat16 for kBF16, float for kF32.
template <>
struct DTypeOf<__nv_bfloat16> {
  static constexpr DType value = DType::kBF16;
};

// Calls body(T{}) with T the element type of `tensor`, on the GPU: float or __nv_bfloat16.
template <class Body>
void DispatchCuda(const char* kernel, const Tensor& tensor, const Body& body) {
  if (tensor.device != Device::kCuda) ThrowFailure(kernel, ": a tensor is not on the GPU");
  switch (tensor.dtype) {
    case DType::kF32: body(float{}); return;
    case DType::kBF16: body(__nv_bfloat16{}); return;
    default: ThrowFailure(kernel, ": no CUDA body for ", Name(tensor.dtype));
  }
}

}  // namespace eyrie
