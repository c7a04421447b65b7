// How the persistent kernels of the sLSTM cut a head: a cluster has its units for 16 sequences, a
// block 32 of them.
#pragma once

#include "kernels/cuda_math.cuh"

namespace eyrie {

inline constexpr int kSlstmSequences = 16, kSlstmBlockUnits = 32, kSlstmThreads = 256;

__device__ __forceinline__ uint32_t PackSlstm(__nv_bfloat16 low, __nv_bfloat16 high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(high)) << 16;
}

// Returns body(blocks) for the number of blocks, 1 to 16, whose cluster holds a head of so many
// units; false where none does.
template <class Body>
bool SlstmWithBlocks(int64_t units, const Body& body) {
  if (units <= 32) return body(std::integral_constant<int, 1>());
  if (units <= 64) return body(std::integral_constant<int, 2>());
  if (units <= 128) return body(std::integral_constant<int, 4>());
  if (units <= 256) return body(std::integral_constant<int, 8>());
  if (units <= 512) return body(std::integral_constant<int, 16>());
  return false;
}

}  // namespace eyrie
