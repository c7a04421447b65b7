// Maps of the mLSTM's tensors for bulk copies.
#pragma once

#include "kernels/mlstm/mlstm_plan.h"
#include "kernels/tensor_map.cuh"

namespace eyrie {

// Rows [B, T, H, width] in boxes of 64 elements of a number of tokens.
inline CUtensorMap MapRows(const MlstmLayout& sizes, const __nv_bfloat16* data, int width,
                           int tokens) {
  const uint64_t row = static_cast<uint64_t>(width) * sizeof(__nv_bfloat16);
  const uint64_t time = row * sizes.heads;
  return MakeTensorMap(
      {.data = data,
       .dimensions = 4,
       .sizes = {static_cast<uint64_t>(width), static_cast<uint64_t>(sizes.heads),
                 static_cast<uint64_t>(sizes.tokens), static_cast<uint64_t>(sizes.sequences)},
       .strides = {row, time, time * sizes.tokens},
       .box = {64, 1, static_cast<uint32_t>(tokens), 1}});
}

// States [B, H, places, dk, dv] in boxes of 64 x 64.
inline CUtensorMap MapStates(const MlstmLayout& sizes, const __nv_bfloat16* data) {
  const uint64_t row = static_cast<uint64_t>(sizes.values) * sizeof(__nv_bfloat16);
  const uint64_t state = row * sizes.keys, head = state * sizes.state_places;
  return MakeTensorMap(
      {.data = data,
       .dimensions = 4,
       .sizes = {static_cast<uint64_t>(sizes.values), static_cast<uint64_t>(sizes.keys),
                 static_cast<uint64_t>(sizes.state_places),
                 static_cast<uint64_t>(sizes.all_heads())},
       .strides = {row, state, head},
       .box = {64, 64, 1, 1}});
}

// Scores [B, H, chunks, L, L] in boxes of 64 x 64.
inline CUtensorMap MapScores(const MlstmLayout& sizes, const __nv_bfloat16* data) {
  const uint64_t side = static_cast<uint64_t>(sizes.chunk_tiles) * kMlstmTile;
  const uint64_t row = side * sizeof(__nv_bfloat16), chunk = row * side;
  return MakeTensorMap({.data = data,
                        .dimensions = 4,
                        .sizes = {side, side, static_cast<uint64_t>(sizes.chunks),
                                  static_cast<uint64_t>(sizes.all_heads())},
                        .strides = {row, chunk, chunk * sizes.chunks},
                        .box = {64, 64, 1, 1}});
}

}  // namespace eyrie
