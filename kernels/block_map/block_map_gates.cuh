// Eight gates at a time beside the backward pass of the block maps: a lane has four rows of a block
// of channels, a warp sixteen rows of eight blocks. Block q of these is that of lanes 4 q to 4 q +
// 3, whose rows follow one another. That is how mma.sync.m16n8k16 (PTX ISA, "Matrix fragments")
// has channels as rows and tokens as columns, so that in bfloat16 the tensor cores do these sums
// with no exchange of what lanes have loaded.
#pragma once

#include "kernels/block_map/block_map_cuda.cuh"
#include "kernels/mma.cuh"

namespace eyrie {

inline constexpr int kLaneRows = 4, kWarpRows = 16;

// dgates [rows, gates] of the gates `first` and on, for the warp's rows from `row` to `end`; zeros
// outside.
template <class T>
struct GateRows {
  const T* dgates;
  int row, end, first, gates;

  // Of the lane's own row u.
  __device__ __forceinline__ float At(int u, int g) const {
    const int own = row + static_cast<int>(threadIdx.x) % 4 * kLaneRows + u;
    if (own >= end || first + g >= gates) return 0.0f;
    return ToFloat(dgates[int64_t{own} * gates + first + g]);
  }
};

// Of eight columns of tokens and rows of gates: lane 4 n + t has gates 2 t and 2 t + 1 of the
// tokens that column n of two products stands for. Of these, lanes 4 q + t find their own four
// rows in columns 2 t and 2 t + 1 of both.
template <>
struct GateRows<__nv_bfloat16> {
  uint32_t pairs[2];

  __device__ __forceinline__ GateRows(const __nv_bfloat16* dgates, int row, int end, int first,
                                      int gates) {
    const int lane = static_cast<int>(threadIdx.x) % 32, n = lane / 4;
    const int gate = first + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = row + n / 2 * kLaneRows + 2 * j + n % 2;
      const __nv_bfloat16* from = dgates + int64_t{token} * gates + gate;
      __nv_bfloat162 pair = __floats2bfloat162_rn(0.0f, 0.0f);
      if (token < end && gate < gates) pair.x = from[0];
      if (token < end && gate + 1 < gates) pair.y = from[1];
      memcpy(&pairs[j], &pair, sizeof(pair));
    }
  }
};

// Folded weights of the gates `first` and on.
template <class T>
struct FoldedGates {
  float values[kGateTile][kBlock];

  template <int kMaps>
  __device__ __forceinline__ FoldedGates(const GateWeights<T, kMaps>& weights, int first,
                                         int64_t column) {
#pragma unroll
    for (int g = 0; g < kGateTile; ++g) weights.Fold(first + g, column, values[g]);
  }

  // dx += dgates times them.
  __device__ __forceinline__ void AddTo(const GateRows<T>& dgates,
                                        float (&dx)[kLaneRows][kBlock]) const {
#pragma unroll
    for (int g = 0; g < kGateTile; ++g) {
#pragma unroll
      for (int u = 0; u < kLaneRows; ++u) {
        const float d = dgates.At(u, g);
#pragma unroll
        for (int i = 0; i < kBlock; ++i) dx[u][i] = fmaf(d, values[g][i], dx[u][i]);
      }
    }
  }
};

// As operand A, two products of 8 pairs of channels: each weight is a sum of two bfloat16, which
// meet the same dgates as if they were those of sixteen gates.
template <>
struct FoldedGates<__nv_bfloat16> {
  uint32_t parts[2][4];

  template <int kMaps>
  __device__ __forceinline__ FoldedGates(const GateWeights<__nv_bfloat16, kMaps>& weights,
                                         int first, int64_t column) {
    float values[2][kBlock];
    const int gate = first + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int e = 0; e < 2; ++e) weights.Fold(gate + e, column, values[e]);
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      parts[i / 2][i % 2] = Pack(values[0][i], values[1][i]);
      parts[i / 2][2 + i % 2] = PackRest(values[0][i], values[1][i]);
    }
  }

  __device__ __forceinline__ void AddTo(const GateRows<__nv_bfloat16>& dgates,
                                        float (&dx)[kLaneRows][kBlock]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        float sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = dx[2 * j + i % 2][2 * p + i / 2];
        Mma(sum, parts[p], dgates.pairs[j], dgates.pairs[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) dx[2 * j + i % 2][2 * p + i / 2] = sum[i];
      }
    }
  }
};

// Sums over rows of dgates times x.
template <class T>
struct GateSums {
  float values[kGateTile][kBlock] = {};  // of the lane's own rows

  __device__ __forceinline__ void Add(const GateRows<T>& dgates,
                                      const Vector<T, kBlock> (&x)[kLaneRows]) {
#pragma unroll
    for (int g = 0; g < kGateTile; ++g) {
#pragma unroll
      for (int u = 0; u < kLaneRows; ++u) {
        const float d = dgates.At(u, g);
#pragma unroll
        for (int i = 0; i < kBlock; ++i) values[g][i] = fmaf(d, x[u][i], values[g][i]);
      }
    }
  }
  // Over the four lanes of a block of channels: lane 4 q + t gets gates 2 t and 2 t + 1.
  __device__ __forceinline__ void Finish(float (&sums)[2][kBlock]) const {
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int g = 0; g < kGateTile; ++g) {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        const float sum = QuadSum(values[g][i]);
        if (g / 2 == t) sums[g % 2][i] = sum;
      }
    }
  }
};

// The transpose of 8 x 8 elements of a warp, of which lane 4 r + t has elements 2 t and 2 t + 1 of
// row r.
__device__ __forceinline__ uint32_t Transposed(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(pair));
  return result;
}

template <>
struct GateSums<__nv_bfloat16> {
  float values[2][4] = {};  // of pairs of channels, by two gates

  __device__ __forceinline__ void Add(const GateRows<__nv_bfloat16>& dgates,
                                      const Vector<__nv_bfloat16, kBlock> (&x)[kLaneRows]) {
    const uint32_t first = Transposed(dgates.pairs[0]), second = Transposed(dgates.pairs[1]);
    uint32_t words[kLaneRows][2];
#pragma unroll
    for (int u = 0; u < kLaneRows; ++u) memcpy(words[u], &x[u], sizeof(words[u]));
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      // Two rows of one channel in each word.
      const uint32_t a[4] = {__byte_perm(words[0][p], words[1][p], 0x5410),
                             __byte_perm(words[0][p], words[1][p], 0x7632),
                             __byte_perm(words[2][p], words[3][p], 0x5410),
                             __byte_perm(words[2][p], words[3][p], 0x7632)};
      Mma(values[p], a, first, second);
    }
  }
  __device__ __forceinline__ void Finish(float (&sums)[2][kBlock]) const {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) sums[e][i] = values[i / 2][i % 2 * 2 + e];
    }
  }
};

}  // namespace eyrie
