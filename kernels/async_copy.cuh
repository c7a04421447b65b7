// Copies from memory into shared memory that a thread starts and lets run beside what it does next
// (PTX ISA, cp.async).
#pragma once

#include "kernels/cuda_math.cuh"

namespace eyrie {

// Addresses of shared memory are 32-bit numbers.
__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 or 8 bytes in the background, or writes zeros if not `valid`; `from` is then not read.
template <int kBytes = 16>
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool valid) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
  } else {
    static_assert(kBytes == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(to), "l"(from),
                 "r"(valid ? 8 : 0)
                 : "memory");
  }
}

// What this thread has copied since the last time is a group.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits for all of this thread's groups but the last kUnderWay; a barrier must follow before others
// read them.
template <int kUnderWay>
__device__ __forceinline__ void WaitForCopyGroups() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kUnderWay) : "memory");
}
// Likewise for all of its copies, in groups or not.
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_all;\n" ::: "memory");
}

}  // namespace eyrie
