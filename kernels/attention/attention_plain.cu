// Attention in plain float32 arithmetic: the body of float32 tensors, and of bfloat16 ones whose
// rows are not whole 16-byte vectors. The same tiling as on the tensor cores, 32 rows against 32, a
// block of 16 x 16 threads. Widths divide by 4 and are at most 256.
#include "core/round.h"
#include "kernels/attention/attention_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kTile = kPlainTiles.held;
static_assert(kPlainTiles.streamed == kTile && kTile == 32);
constexpr int kThreads = 256;
constexpr int kWeightStride = kTile + 1;
constexpr int kSlices = 256 / 64;  // of 64 columns: 16 threads of 4

__device__ int ThreadRow() { return static_cast<int>(threadIdx.x) / 16; }
__device__ int ThreadColumn() { return static_cast<int>(threadIdx.x) % 16; }
// Four floats between rows keep 8 rows' equal columns in different banks.
__host__ __device__ constexpr int Stride(int width) { return width + 4; }

// tile [32, Stride(width)]; rows for which row_pointer is null become zeros.
template <class RowPointer>
__device__ void FillTile(float* tile, int width, const RowPointer& row_pointer) {
  const int vectors = width / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * vectors; i += kThreads) {
    const int row = i / vectors, column = i % vectors * 4;
    const auto* from = row_pointer(row);
    float4 to = make_float4(0, 0, 0, 0);
    if (from != nullptr) {
      const auto read = LoadVector<4>(from + column);
      to = make_float4(read[0], read[1], read[2], read[3]);
    }
    *reinterpret_cast<float4*>(tile + row * Stride(width) + column) = to;
  }
}

// This thread's four elements of a b^T: rows ThreadRow() + 16 i, columns ThreadColumn() + 16 j.
// Sums of 16 products each are added up, which rounds a wide row a third as much as one long sum
// does.
__device__ void MultiplyTiles(const float* a, const float* b, int width, float (&result)[2][2]) {
  const int stride = Stride(width);
  a += ThreadRow() * stride;
  b += ThreadColumn() * stride;
  for (int i = 0; i < 4; ++i) result[i / 2][i % 2] = 0.0f;
  for (int begin = 0; begin < width; begin += 16) {
    float sums[2][2] = {};
    for (int column = begin; column < min(begin + 16, width); column += 4) {
      float4 left[2], right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        left[i] = *reinterpret_cast<const float4*>(a + 16 * i * stride + column);
        right[i] = *reinterpret_cast<const float4*>(b + 16 * i * stride + column);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& sum = sums[i][j];
          sum = fmaf(left[i].x, right[j].x, sum);
          sum = fmaf(left[i].y, right[j].y, sum);
          sum = fmaf(left[i].z, right[j].z, sum);
          sum = fmaf(left[i].w, right[j].w, sum);
        }
      }
    }
    for (int i = 0; i < 4; ++i) result[i / 2][i % 2] += sums[i / 2][i % 2];
  }
}

// This thread's sums of a [32, width] product: rows as above, columns 64 slice + 4 ThreadColumn().
using PlainSums = float[2][kSlices][4];
__device__ __forceinline__ int SliceColumn(int slice) { return 64 * slice + 4 * ThreadColumn(); }
__device__ __forceinline__ void SetPlainZero(PlainSums& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[i][slice][c] = 0.0f;
    }
  }
}
// sums += weights [32, 32] tile.
__device__ void AddPlainProduct(const float* weights, const float* tile, int width,
                                PlainSums& sums) {
  for (int inner = 0; inner < kTile; ++inner) {
    const float left[2] = {weights[ThreadRow() * kWeightStride + inner],
                           weights[(ThreadRow() + 16) * kWeightStride + inner]};
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      if (SliceColumn(slice) >= width) continue;
      const float4 right =
          *reinterpret_cast<const float4*>(tile + inner * Stride(width) + SliceColumn(slice));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums[i][slice][0] = fmaf(left[i], right.x, sums[i][slice][0]);
        sums[i][slice][1] = fmaf(left[i], right.y, sums[i][slice][1]);
        sums[i][slice][2] = fmaf(left[i], right.z, sums[i][slice][2]);
        sums[i][slice][3] = fmaf(left[i], right.w, sums[i][slice][3]);
      }
    }
  }
}
// Writes the sums of row ThreadRow() + 16 i, times `factor`, to a row in memory.
template <class U>
__device__ void StorePlain(const float (&sums)[kSlices][4], float factor, int width, U* to) {
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
    if (SliceColumn(slice) >= width) continue;
    Vector<U, 4> vector;
#pragma unroll
    for (int c = 0; c < 4; ++c) vector.Set(c, sums[slice][c] * factor);
    StoreVector(to + SliceColumn(slice), vector);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    AttentionForwardPlainKernel(const AttentionView<T> view, const ForwardOutputs<T> out) {
  extern __shared__ __align__(16) float plain[];
  __shared__ int2 seen[kTile];
  __shared__ float weights[kTile * kWeightStride];  // scores, then probabilities
  __shared__ float factors[kTile];
  float* queries = plain;
  float* keys = queries + kTile * Stride(view.width);
  float* values = keys + kTile * Stride(view.width);

  const int b = static_cast<int>(blockIdx.x) % view.sequences;
  const int row_begin =
      static_cast<int>(gridDim.x / view.sequences - 1 - blockIdx.x / view.sequences) * kTile;
  const int part = static_cast<int>(blockIdx.y);
  FillTile(queries, view.width, [&](int r) { return view.QueryRow(view.q, b, row_begin + r); });
  const Sight sight = LookAtRows<kTile>(view, b, row_begin, seen);
  const TileRange tiles = PartOf(sight.KeyTiles(kTile), part, out.parts);
  const float scale_log2 = view.scale * kLog2E;
  // The running softmax of row threadIdx.x / 8, known to its eight threads.
  const int softmax_row = static_cast<int>(threadIdx.x) / 8;
  float* softmax_weights = weights + softmax_row * kWeightStride + threadIdx.x % 8;
  float largest = -INFINITY, sum = 0.0f;
  PlainSums o;
  SetPlainZero(o);
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const int key_begin = sight.first_min + tile * kTile;
    __syncthreads();
    FillTile(keys, view.width, [&](int r) {
      return view.KeyRow(view.k, view.past_k, b, key_begin + r, sight.token_max + 1);
    });
    FillTile(values, view.width, [&](int r) {
      return view.KeyRow(view.v, view.past_v, b, key_begin + r, sight.token_max + 1);
    });
    __syncthreads();
    float scores[2][2];
    MultiplyTiles(queries, keys, view.width, scores);
    for (int i = 0; i < 2; ++i) {
      const int row = ThreadRow() + 16 * i;
      for (int j = 0; j < 2; ++j) {
        const int column = ThreadColumn() + 16 * j, key = key_begin + column;
        weights[row * kWeightStride + column] =
            key >= seen[row].x && key <= seen[row].y ? scores[i][j] : -INFINITY;
      }
    }
    __syncthreads();
    float peak = largest;
    for (int n = 0; n < kTile; n += 8) peak = fmaxf(peak, softmax_weights[n]);
    for (int lane = 4; lane > 0; lane >>= 1) {
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, lane));
    }
    // A row that has seen nothing yet must not subtract infinities.
    const float base = peak == -INFINITY ? 0.0f : peak;
    const float shrink = exp2f((largest - base) * scale_log2);
    largest = peak;
    float fresh = 0.0f;
    for (int n = 0; n < kTile; n += 8) {
      const float weight = exp2f((softmax_weights[n] - base) * scale_log2);
      softmax_weights[n] = weight;
      fresh += weight;
    }
    for (int lane = 4; lane > 0; lane >>= 1) fresh += __shfl_xor_sync(0xffffffffu, fresh, lane);
    sum = sum * shrink + fresh;
    if (threadIdx.x % 8 == 0) factors[softmax_row] = shrink;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = factors[ThreadRow() + 16 * i];
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
        for (int c = 0; c < 4; ++c) o[i][slice][c] *= factor;
      }
    }
    AddPlainProduct(weights, values, view.width, o);
  }

  __syncthreads();
  const int64_t all_rows = static_cast<int64_t>(view.sequences) * view.rows();
  const bool whole = out.partial_o == nullptr;
  const auto row_index = [&](int r) {
    return static_cast<int64_t>(b) * view.rows() + row_begin + r;
  };
  if (threadIdx.x % 8 == 0) {
    // Nothing seen: only in a part of several, or beyond the last row.
    factors[softmax_row] = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (row_begin + softmax_row < view.rows()) {
      const float lse = sum > 0.0f ? largest * view.scale + logf(sum) : -INFINITY;
      const int64_t at = row_index(softmax_row);
      (whole ? out.lse[at] : out.partial_lse[part * all_rows + at]) = lse;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = ThreadRow() + 16 * i;
    if (row_begin + r >= view.rows()) continue;
    if (whole) {
      StorePlain(o[i], factors[r], view.width, out.o + row_index(r) * view.width);
    } else {
      StorePlain(o[i], factors[r], view.width,
                 out.partial_o + (part * all_rows + row_index(r)) * view.width);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    AttentionBackwardQueriesPlainKernel(const AttentionView<T> view, const T* dout,
                                        const RowRecord* records, T* dq) {
  extern __shared__ __align__(16) float plain[];
  __shared__ int2 seen[kTile];
  __shared__ float weights[kTile * kWeightStride];
  const int tile_elements = kTile * Stride(view.width);
  float *queries = plain, *douts = queries + tile_elements;
  float *keys = douts + tile_elements, *values = keys + tile_elements;

  const int b = static_cast<int>(blockIdx.x) % view.sequences;
  const int row_begin =
      static_cast<int>(gridDim.x / view.sequences - 1 - blockIdx.x / view.sequences) * kTile;
  FillTile(queries, view.width, [&](int r) { return view.QueryRow(view.q, b, row_begin + r); });
  FillTile(douts, view.width, [&](int r) { return view.QueryRow(dout, b, row_begin + r); });
  const Sight sight = LookAtRows<kTile>(view, b, row_begin, seen);
  const TileRange tiles = sight.KeyTiles(kTile);
  RowRecord record[2];
  for (int i = 0; i < 2; ++i) {
    const int row = row_begin + ThreadRow() + 16 * i;
    record[i] = {0.0f, 0.0f, INT_MAX, INT_MIN};
    if (row < view.rows()) record[i] = records[view.Record(b, row)];
  }
  const float scale_log2 = view.scale * kLog2E;
  PlainSums sums;
  SetPlainZero(sums);
  for (int tile = tiles.begin; tile < tiles.end; ++tile) {
    const int key_begin = sight.first_min + tile * kTile;
    __syncthreads();
    FillTile(keys, view.width, [&](int r) {
      return view.KeyRow(view.k, view.past_k, b, key_begin + r, sight.token_max + 1);
    });
    FillTile(values, view.width, [&](int r) {
      return view.KeyRow(view.v, view.past_v, b, key_begin + r, sight.token_max + 1);
    });
    __syncthreads();
    float scores[2][2], dp[2][2];
    MultiplyTiles(queries, keys, view.width, scores);
    MultiplyTiles(douts, values, view.width, dp);
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const int column = ThreadColumn() + 16 * j, key = key_begin + column;
        const float p = exp2f(fmaf(scores[i][j], scale_log2, -record[i].lse));
        weights[(ThreadRow() + 16 * i) * kWeightStride + column] =
            record[i].Weighs(key) ? p * (dp[i][j] - record[i].delta) : 0.0f;
      }
    }
    __syncthreads();
    AddPlainProduct(weights, keys, view.width, sums);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    T* to = view.QueryRow(dq, b, row_begin + ThreadRow() + 16 * i);
    if (to != nullptr) StorePlain(sums[i], view.scale, view.width, to);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    AttentionBackwardKeysPlainKernel(const AttentionView<T> view, const T* dout,
                                     const BackwardInputs in, const BackwardSums out) {
  extern __shared__ __align__(16) float plain[];
  __shared__ float weights[2][kTile * kWeightStride];  // P^T, dS^T
  const int tile_elements = kTile * Stride(view.width);
  float *queries = plain, *douts = queries + tile_elements;
  float *keys = douts + tile_elements, *values = keys + tile_elements;

  const int b = static_cast<int>(blockIdx.x) % view.sequences;
  const int part = static_cast<int>(blockIdx.x) / view.sequences % out.parts;
  const int key_begin =
      static_cast<int>(blockIdx.x) / view.sequences / out.parts * kTile - view.past;
  const int key_end = min(key_begin + kTile, view.tokens);
  FillTile(keys, view.width,
           [&](int r) { return view.KeyRow(view.k, view.past_k, b, key_begin + r, key_end); });
  FillTile(values, view.width,
           [&](int r) { return view.KeyRow(view.v, view.past_v, b, key_begin + r, key_end); });
  const TileRange tiles =
      PartOf(RowTilesSeeing(key_begin, key_end, view.tokens, view.heads, view.window, kTile), part,
             out.parts);
  const int row_tiles = CeilDiv(view.rows(), kTile);
  const int2* sights = in.sights + static_cast<int64_t>(b) * row_tiles;
  const float scale_log2 = view.scale * kLog2E;
  PlainSums dk, dv;
  SetPlainZero(dk);
  SetPlainZero(dv);
  for (int tile = NextTileSeeing(sights, key_end, tiles.begin, tiles.end); tile < tiles.end;
       tile = NextTileSeeing(sights, key_end, tile + 1, tiles.end)) {
    const int row_begin = tile * kTile;
    __syncthreads();
    FillTile(queries, view.width, [&](int r) { return view.QueryRow(view.q, b, row_begin + r); });
    FillTile(douts, view.width, [&](int r) { return view.QueryRow(dout, b, row_begin + r); });
    __syncthreads();
    float scores[2][2], dp[2][2];
    MultiplyTiles(keys, queries, view.width, scores);
    MultiplyTiles(values, douts, view.width, dp);
    for (int j = 0; j < 2; ++j) {
      const RowRecord record = in.records[view.Record(b, row_begin + ThreadColumn() + 16 * j)];
      for (int i = 0; i < 2; ++i) {
        const int key = key_begin + ThreadRow() + 16 * i;
        const float p =
            record.Sees(key) ? exp2f(fmaf(scores[i][j], scale_log2, -record.lse)) : 0.0f;
        const int at = (ThreadRow() + 16 * i) * kWeightStride + ThreadColumn() + 16 * j;
        weights[0][at] = p;
        weights[1][at] = record.Weighs(key) ? p * (dp[i][j] - record.delta) : 0.0f;
      }
    }
    __syncthreads();
    AddPlainProduct(weights[0], douts, view.width, dv);
    AddPlainProduct(weights[1], queries, view.width, dk);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int key = key_begin + ThreadRow() + 16 * i;
    if (key >= view.tokens) continue;
    StorePlain(dk[i], view.scale, view.width, out.Row(view, out.dk, part, b, key));
    StorePlain(dv[i], 1.0f, view.width, out.Row(view, out.dv, part, b, key));
  }
}

template <class T>
size_t SharedBytes(const AttentionView<T>& view, int tiles) {
  return static_cast<size_t>(tiles) * kTile * Stride(view.width) * sizeof(float);
}

}  // namespace

template <class T>
void AttentionForwardPlain(const AttentionView<T>& view, const ForwardOutputs<T>& out) {
  const auto kernel = AttentionForwardPlainKernel<T>;
  const size_t shared = SharedBytes(view, 3);
  AllowSharedMemory(kernel, shared);
  const int64_t rows = int64_t{view.tokens} * view.heads;
  const dim3 grid(static_cast<unsigned>(view.sequences * CeilDiv(rows, kTile)),
                  static_cast<unsigned>(out.parts));
  Launch("attention_forward", kernel, grid, dim3(kThreads), shared, view, out);
}

template <class T>
void AttentionBackwardPlain(const AttentionView<T>& view, const T* dout, const BackwardInputs& in,
                            T* dq, const BackwardSums& sums) {
  const size_t shared = SharedBytes(view, 4);
  const auto keys = AttentionBackwardKeysPlainKernel<T>;
  AllowSharedMemory(keys, shared);
  const int64_t key_blocks =
      view.sequences * CeilDiv(int64_t{view.past} + view.tokens, kTile) * sums.parts;
  Launch("attention_backward dk dv", keys, dim3(static_cast<unsigned>(key_blocks)), dim3(kThreads),
         shared, view, dout, in, sums);
  const auto queries = AttentionBackwardQueriesPlainKernel<T>;
  AllowSharedMemory(queries, shared);
  const int64_t row_blocks = view.sequences * CeilDiv(int64_t{view.tokens} * view.heads, kTile);
  Launch("attention_backward dq", queries, dim3(static_cast<unsigned>(row_blocks)), dim3(kThreads),
         shared, view, dout, in.records, dq);
}

template void AttentionForwardPlain<float>(const AttentionView<float>&,
                                           const ForwardOutputs<float>&);
template void AttentionForwardPlain<__nv_bfloat16>(const AttentionView<__nv_bfloat16>&,
                                                   const ForwardOutputs<__nv_bfloat16>&);
template void AttentionBackwardPlain<float>(const AttentionView<float>&, const float*,
                                            const BackwardInputs&, float*, const BackwardSums&);
template void AttentionBackwardPlain<__nv_bfloat16>(const AttentionView<__nv_bfloat16>&,
                                                    const __nv_bfloat16*, const BackwardInputs&,
                                                    __nv_bfloat16*, const BackwardSums&);

}  // namespace eyrie
