// A pass as device code sees it. The tokens are cut into chunks, each taken through time by a block
// of its own: first every chunk's increment of the state, then, by a scan, the state that enters
// each, then the outputs. Where sequences and heads alone fill the GPU there is one chunk, and the
// last of the three steps is all.
#pragma once

#include <climits>

#include "kernels/cuda_math.cuh"
#include "kernels/lightning_attention/lightning_pass.h"

namespace eyrie {

template <class T>
struct LightningView {
  const T *q, *k;  // [B, T, H, keys]
  const T* v;      // [B, T, H, values]
  T* o;            // like v
  const float* rate;
  const int32_t* positions;
  int tokens, heads, keys, values;
  bool reverse;
  int chunk, chunks;  // tokens of a chunk, in whole tiles; how many there are
  // [B, H, chunks, ...] the states before and after each chunk; absent: zeros, and not wanted. An
  // element lies at key * key_stride + value * value_stride.
  const float* entering;
  float* leaving;
  int key_stride, value_stride;

  // The token that the pass comes to as the i-th.
  __device__ int Token(int i) const { return reverse ? tokens - 1 - i : i; }
  __device__ int Document(int b, int token) const {
    return static_cast<int>(DocumentOf(token, positions[static_cast<int64_t>(b) * tokens + token]));
  }
  // The first element of a head's row of q, k or, with the width of values, of v or o.
  __device__ int64_t Row(int b, int token, int h, int width) const {
    return ((static_cast<int64_t>(b) * tokens + token) * heads + h) * width;
  }
  __device__ int64_t State(int head, int chunk_index) const {
    return (static_cast<int64_t>(head) * chunks + chunk_index) * keys * values;
  }
  // What is left of the state that enters a chunk in the one that leaves it.
  __device__ float ChunkDecay(int b, int h, int chunk_index) const {
    const int begin = chunk_index * chunk, end = min(tokens, begin + chunk);
    const int first = Token(begin), last = Token(end - 1), early = min(first, last);
    const int document = Document(b, early);
    const bool crosses = document == Document(b, max(first, last)) && ReachesBack(early, document);
    return crosses ? expf(-rate[h] * static_cast<float>(end - begin)) : 0.0f;
  }
};

// The chunks' increments or outputs, on the tensor cores; keys and values divide by 8.
void LightningChunksMma(const LightningView<__nv_bfloat16>& view, int sequences);
// In float32 arithmetic.
template <class T>
void LightningChunksPlain(const LightningView<T>& view, int sequences);

}  // namespace eyrie
