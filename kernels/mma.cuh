// Tensor core products of a warp on bfloat16 tiles in shared memory: mma.sync.m16n8k16 with
// operands from ldmatrix. mma_tiles.h says where elements lie; tiles start at multiples of
// 128 bytes.
#pragma once

#include "kernels/async_copy.cuh"
#include "kernels/mma_tiles.h"

namespace eyrie {

// Copies kRows rows of `width` elements into a tile; columns from `width` on, and rows for which
// row_pointer(r) is null, become zeros.
template <int kWidth, int kRows, int kThreads, class RowPointer>
__device__ __forceinline__ void CopyTile(uint32_t tile, int width, const void* readable,
                                         const RowPointer& row_pointer) {
  constexpr int kChunks = kWidth / 8;
  static_assert(kRows * kChunks % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = index / kChunks, chunk = index % kChunks;
    const __nv_bfloat16* from = row_pointer(row);
    const bool valid = from != nullptr && chunk * 8 < width;
    CopyAsync(tile + ChunkOffset<kWidth>(row, chunk),
              valid ? static_cast<const void*>(from + chunk * 8) : readable, valid);
  }
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Sums of a warp over [16 * kTiles rows, kColumns] of a product, as accumulators.
template <int kTiles, int kColumns>
using Accumulators = float[kTiles][kColumns / 8][4];

template <int kTiles, int kColumns>
__device__ __forceinline__ void SetZero(Accumulators<kTiles, kColumns>& sums) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
}

// sums += A B^T: A is 16 * kTiles rows of a tile, from `a` on, B a tile of kColumns rows.
template <int kWidth, int kTiles, int kColumns>
__device__ __forceinline__ void AddTransposed(uint32_t a, uint32_t b,
                                              Accumulators<kTiles, kColumns>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const LaneChunk in_a = LaneOfA(lane), in_b = LaneOfB(lane);
  const uint32_t a_lane = a + ChunkOffset<kWidth>(in_a.row, in_a.chunk);
  const uint32_t b_lane = b + ChunkOffset<kWidth>(in_b.row, in_b.chunk);
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    uint32_t left[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      LoadMatrices(left[m], StepRight(a_lane, step) + m * 16 * kWidth * 2);
    }
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t right[4];
      LoadMatrices(right, StepRight(b_lane, step) + n * 16 * kWidth * 2);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        Mma(sums[m][2 * n], left[m], right[0], right[1]);
        Mma(sums[m][2 * n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// sums = A B^T, likewise.
template <int kWidth, int kTiles, int kColumns>
__device__ __forceinline__ void MultiplyTransposed(uint32_t a, uint32_t b,
                                                   Accumulators<kTiles, kColumns>& sums) {
  SetZero<kTiles, kColumns>(sums);
  AddTransposed<kWidth, kTiles, kColumns>(a, b, sums);
}

__device__ __forceinline__ uint32_t Pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float2 Unpack(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}
// What is left of a pair when it is rounded.
__device__ __forceinline__ uint32_t PackRest(float low, float high) {
  const float2 rounded = Unpack(Pack(low, high));
  return Pack(low - rounded.x, high - rounded.y);
}
// A pair of elements, each times its factor.
__device__ __forceinline__ uint32_t Scale(uint32_t pair, float2 factors) {
  const float2 values = Unpack(pair);
  return Pack(values.x * factors.x, values.y * factors.y);
}
// The sum over the four lanes that have a row of accumulators.
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// sums += A B: A [16 * kTiles, kInner] are accumulators of an earlier product, rounded to
// bfloat16; they already lie as operand A needs them. B is a tile of kInner rows.
template <int kWidth, int kTiles, int kInner>
__device__ __forceinline__ void AddProduct(const Accumulators<kTiles, kInner>& a, uint32_t b,
                                           Accumulators<kTiles, kWidth>& sums) {
  const LaneChunk in_b = LaneOfA(static_cast<int>(threadIdx.x) % 32);
  const uint32_t b_lane = b + ChunkOffset<kWidth>(in_b.row, in_b.chunk);
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
    uint32_t left[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&pair)[4] = a[m][2 * step + i / 2];
        left[m][i] = Pack(pair[2 * (i % 2)], pair[2 * (i % 2) + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) {
      uint32_t right[4];
      LoadMatricesTransposed(right, StepRight(b_lane, n) + step * 16 * kWidth * 2);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        Mma(sums[m][2 * n], left[m], right[0], right[1]);
        Mma(sums[m][2 * n + 1], left[m], right[2], right[3]);
      }
    }
  }
}

}  // namespace eyrie
