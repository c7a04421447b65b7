// What the CUDA bodies of the block maps share.
#pragma once

#include <type_traits>

#include "kernels/block_map/block_map_cuda.h"
#include "kernels/cuda_math.cuh"

namespace eyrie {

inline constexpr int kBlock = static_cast<int>(kBlockMapWidth);

// The block of weights from channel `column` on, out by in.
template <class T>
__device__ __forceinline__ void LoadMap(const T* w, int64_t column, float (&map)[kBlock][kBlock]) {
#pragma unroll
  for (int o = 0; o < kBlock; ++o) {
    const Vector<T, kBlock> line = LoadVector<kBlock>(w + (column + o) * kBlock);
#pragma unroll
    for (int i = 0; i < kBlock; ++i) map[o][i] = line[i];
  }
}

// Gates that read the outputs of maps of one input. Since those are w x block by block, a gate
// multiplies channel 4 b + i of x by the sum over maps and o of w[b, o, i] gates_w[gate, 4 b + o]:
// its weight folded through the maps.
template <class T, int kMaps>
struct GateWeights {
  const T *w[kMaps], *gates_w[kMaps];
  int gates, width;

  // The folded weight of one gate for the block of channels at `column`; zeros past the last gate.
  __device__ __forceinline__ void Fold(int gate, int64_t column, float (&folded)[kBlock]) const {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) folded[i] = 0.0f;
    if (gate >= gates) return;
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      float map[kBlock][kBlock];
      LoadMap(w[m], column, map);
      const Vector<T, kBlock> line =
          LoadVector<kBlock>(gates_w[m] + int64_t{gate} * width + column);
#pragma unroll
      for (int o = 0; o < kBlock; ++o) {
#pragma unroll
        for (int i = 0; i < kBlock; ++i) folded[i] = fmaf(map[o][i], line[o], folded[i]);
      }
    }
  }
};

inline constexpr int kGateTile = 8;  // gates that bodies take at once

// Calls body(constant) with the number of maps.
template <class Maps, class Body>
void WithMaps(const Maps& maps, const Body& body) {
  if (maps.size() == 1) {
    body(std::integral_constant<int, 1>{});
  } else {
    body(std::integral_constant<int, static_cast<int>(kMostBlockMaps)>{});
  }
}

template <class T>
void CheckAligned(const char* kernel, const T* pointer) {
  EYRIE_CHECK(Aligned<kBlock>(pointer), kernel, ": memory is not aligned for blocks of four");
}

}  // namespace eyrie
