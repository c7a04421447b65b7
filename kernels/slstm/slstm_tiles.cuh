// How the persistent kernels of the sLSTM cut a head: a cluster has its units for 16 sequences, a
// block 32 of them.
#pragma once

#include "kernels/cluster.cuh"
#include "kernels/cuda_math.cuh"

namespace eyrie {

inline constexpr int kSlstmSequences = 16, kSlstmBlockUnits = 32, kSlstmThreads = 256;

__device__ __forceinline__ uint32_t PackSlstm(__nv_bfloat16 low, __nv_bfloat16 high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(high)) << 16;
}

// Waits for the other warp of a pair; pairs count from 0.
__device__ __forceinline__ void PairBarrier(int pair) {
  asm volatile("bar.sync %0, 64;\n" ::"r"(pair + 1) : "memory");
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

// The launch of a body on clusters of kBlocks: a kernel Body<kBlocks>::kKernel of a view, and its
// shared memory in bytes, kShared.
template <template <int> class Body, int kBlocks, class View>
ClusterLaunch<View> SlstmLaunch(const View& view) {
  const dim3 grid(static_cast<unsigned>(view.sizes.heads) * kBlocks,
                  Pieces(view.sizes.batch, kSlstmSequences));
  return {Body<kBlocks>::kKernel, kBlocks, grid, kSlstmThreads, Body<kBlocks>::kShared};
}

// Whether this build and this GPU have clusters for the body, and `out`, as wide as a head, takes
// vectors.
template <template <int> class Body, class View>
bool SlstmFits(const View& view, const __nv_bfloat16* out) {
  const int64_t units = view.sizes.units;
  if (units % 8 != 0 || !FitsVectors<__nv_bfloat16>(out, units)) return false;
  return SlstmWithBlocks(units, [&]<int kBlocks>(std::integral_constant<int, kBlocks>) {
    static const bool fits =
        CompiledForHopper(Body<kBlocks>::kKernel) && SlstmLaunch<Body, kBlocks>(view).Fits();
    return fits;
  });
}

template <template <int> class Body, class View>
void SlstmRun(const char* name, const View& view) {
  SlstmWithBlocks(view.sizes.units, [&]<int kBlocks>(std::integral_constant<int, kBlocks>) {
    SlstmLaunch<Body, kBlocks>(view).Run(name, view);
    return true;
  });
}

}  // namespace eyrie
