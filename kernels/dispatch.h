// Picks a kernel's body: by device, then by element type, after a KernelScope that names the
// kernel's folder. An unknown case is an error, never a fallback. Meta tensors need no body:
// arguments have been checked, and there is nothing to compute.
#pragma once

#include "core/device.h"
#include "core/kernel_times.h"
#include "core/tensor.h"

// Runs `body`, a call of a CUDA body, and returns, where `tensor` lies on a GPU. In a build without
// CUDA such bodies are declared and not defined.
#define EYRIE_DISPATCH_CUDA(tensor, body)                         \
  do {                                                            \
    if constexpr (::eyrie::kCudaBuild) {                          \
      if ((tensor).device == ::eyrie::Device::kCuda) return body; \
    }                                                             \
  } while (false)

namespace eyrie {

// Calls body(T{}) with T the floating-point type of `tensor`, on the CPU.
template <class Body>
void DispatchCpu(const char* kernel, const Tensor& tensor, const Body& body) {
  if (IsMeta(tensor.device)) return;
  if (tensor.device != Device::kCpu) {
    ThrowFailure(kernel, ": this build has no body for the tensor's device");
  }
  switch (tensor.dtype) {
    case DType::kF32: body(float{}); return;
    case DType::kF64: body(double{}); return;
    default: ThrowFailure(kernel, ": no CPU body for ", Name(tensor.dtype));
  }
}

// A kernel's host launcher validates everything it was given.
inline void CheckShape(const char* kernel, const char* argument, const Tensor& tensor,
                       const Shape& expected) {
  if (!tensor.defined() || !(tensor.shape == expected)) {
    ThrowFailure(kernel, ": ", argument, " has shape ",
                 tensor.defined() ? tensor.shape.ToString() : std::string("(absent)"),
                 ", expected ", expected.ToString());
  }
}
inline void CheckOptional(const char* kernel, const char* argument, const Tensor& tensor,
                          const Shape& expected) {
  if (tensor.defined()) CheckShape(kernel, argument, tensor, expected);
}

// Those of `tensors` that are given hold `dtype` and lie on the device of `main`.
inline void CheckTypes(const char* kernel, const Tensor& main, DType dtype,
                       std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined() || (tensor.dtype == dtype && tensor.device == main.device)) continue;
    ThrowFailure(kernel, ": the tensor ", tensor.shape.ToString(), " of ", Name(tensor.dtype),
                 " should hold ", Name(dtype), " on the device of the others");
  }
}
// Scratch that a body asked for: `elements` of float32 or more, none for a CPU body.
inline void CheckWorkspace(const char* kernel, const Tensor& main, const Tensor& workspace,
                           int64_t elements) {
  if (elements == 0) return;
  EYRIE_CHECK(workspace.defined() && workspace.size() >= elements, kernel, ": workspace has shape ",
              workspace.shape.ToString(), ", expected ", elements, " elements");
  CheckTypes(kernel, main, DType::kF32, {workspace});
}

}  // namespace eyrie
