// Kernels that start before the one given just before them has ended (programmatic dependent
// launch, CUDA programming guide; Hopper and later), also inside CUDA graphs. Where kernels are
// short this hides what starting one costs: its blocks are there, and may even have fetched what
// nobody writes, when the kernel before ends.
//
// A kernel launched with LaunchEarly calls AwaitEarlier, in every thread, before it reads or writes
// anything that work given earlier writes or reads. Then all of that work has ended, not only the
// kernel just before, because that one has waited likewise. An argument that points to what that
// work writes has no __restrict__: it would promise that nobody writes while the kernel lives. A
// kernel that calls LetNextStart, early or not itself, lets the next one start as soon as all of
// its own blocks have; without the call the next one starts when it ends.
#pragma once

#include "core/cuda.h"

namespace eyrie {

__device__ __forceinline__ void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void AwaitEarlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// As Launch, of a kernel that calls AwaitEarlier. Code without that instruction starts when all
// earlier work has ended.
template <class... Parameters, class... Arguments>
void LaunchEarly(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                 size_t shared, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // All kernels are compiled for the same GPUs: one of each signature tells.
  static const bool can_wait = CompiledForHopper(kernel);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = ComputeStream();
  config.attrs = &early;
  config.numAttrs = can_wait ? 1 : 0;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace eyrie
