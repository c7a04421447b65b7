// What enters and leaves a chunk in a pass of the mLSTM on the tensor cores. A warp has a part of
// the state transposed, S^T [16 values, 8 kGroups keys], as accumulators of a product, and of the
// further key a lane has its two values AccumulatorRow(lane, 2 i), alike in a quad.
#pragma once

#include "kernels/mlstm/mlstm_kernels.cuh"
#include "kernels/mma_tiles.h"

namespace eyrie {

// Where a warp's part lies: its first key; its first value, counted from the pass's first_value on,
// where `values` are to be had; and the index [B, H, chunks] of its head and chunk.
struct MlstmStatePart {
  int key, first_value, value, values;
  int64_t chunk;
};

// Calls body(element of the state, where it lies in memory) for those that exist.
template <int kGroups, class State, class Body>
__device__ __forceinline__ void ForState(const MlstmPass<__nv_bfloat16>& pass,
                                         const MlstmStatePart& part, State (&state)[kGroups][4],
                                         const Body& body) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = part.key + 8 * n + AccumulatorColumn(lane, i);
      const int value = part.value + AccumulatorRow(lane, i);
      if (key >= pass.keys || value >= part.values) continue;
      body(state[n][i], key * pass.key_stride + (part.first_value + value) * pass.value_stride);
    }
  }
}
// The same for the lane's values of the further key.
template <class State, class Body>
__device__ __forceinline__ void ForExtraState(const MlstmPass<__nv_bfloat16>& pass,
                                              const MlstmStatePart& part, State (&state)[2],
                                              const Body& body) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int value = part.value + AccumulatorRow(static_cast<int>(threadIdx.x) % 32, 2 * i);
    if (value < part.values) body(state[i], part.chunk * pass.values + part.first_value + value);
  }
}

// The further key's only if it has one.
template <int kGroups>
__device__ __forceinline__ void EnterChunk(const MlstmPass<__nv_bfloat16>& pass,
                                           const MlstmStatePart& part, bool extra,
                                           float (&state)[kGroups][4], float (&extra_state)[2]) {
#pragma unroll
  for (int n = 0; n < kGroups; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) state[n][i] = 0.0f;
  }
  if (pass.entering != nullptr) {
    const float* from = pass.entering + part.chunk * pass.keys * pass.values;
    ForState(pass, part, state, [&](float& element, int at) { element = from[at]; });
  }
  extra_state[0] = extra_state[1] = 0.0f;
  if (extra && pass.entering_extra != nullptr) {
    ForExtraState(pass, part, extra_state,
                  [&](float& element, int64_t at) { element = pass.entering_extra[at]; });
  }
}
// Of lanes that have the same of the further key, one stores it.
template <int kGroups>
__device__ __forceinline__ void LeaveChunk(const MlstmPass<__nv_bfloat16>& pass,
                                           const MlstmStatePart& part, bool stores_extra,
                                           const float (&state)[kGroups][4],
                                           const float (&extra_state)[2]) {
  if (pass.leaving != nullptr) {
    float* to = pass.leaving + part.chunk * pass.keys * pass.values;
    ForState(pass, part, state, [&](float element, int at) { to[at] = element; });
  }
  if (stores_extra && pass.leaving_extra != nullptr) {
    ForExtraState(pass, part, extra_state,
                  [&](float element, int64_t at) { pass.leaving_extra[at] = element; });
  }
}

}  // namespace eyrie
