// Embedding on the GPU. N tokens, V rows of the table here, D width.
//
// The backward pass sorts the tokens' positions by row of the table, in token order within a row,
// and cuts the sorted positions into pieces of 32. A warp adds up the rows of dy of one piece, run
// by run of equal tokens. A run that lies in one piece goes straight to the table. The parts of a
// longer run are kept, and a second kernel adds them up, so that a token as frequent as all of them
// still keeps every multiprocessor busy. Each row of dtable has one writer, each sum one order.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda_math.cuh"
#include "kernels/embedding/embedding_cuda.h"

namespace eyrie {
namespace {

constexpr int kForwardThreads = 128;

// y [N, D]: a block a token.
template <class T, int kWidth>
__global__ void __launch_bounds__(kForwardThreads)
    ForwardKernel(const int32_t* __restrict__ tokens, const T* __restrict__ table,
                  int64_t first_row, int64_t rows, int64_t width, float scale, T* __restrict__ y) {
  const int64_t row = tokens[blockIdx.x] - first_row;
  const bool here = row >= 0 && row < rows;
#pragma unroll 4
  for (int64_t c = threadIdx.x * kWidth; c < width; c += kForwardThreads * kWidth) {
    Vector<T, kWidth> values;
    if (here) values = LoadVector<kWidth>(table + row * width + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values.Set(i, here ? scale * values[i] : 0.0f);
    StoreVector(y + int64_t{blockIdx.x} * width + c, values);
  }
}

constexpr int kPiece = EmbeddingWorkspace::kPiece;
constexpr int kSumWarps = 4;

// What to sort: the row of the table, or `rows` for a token that is elsewhere, and the position.
__global__ void KeyKernel(const int32_t* __restrict__ tokens, int count, int64_t first_row,
                          int64_t rows, int32_t* __restrict__ keys, int32_t* __restrict__ order) {
  const int n = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (n >= count) return;
  const int64_t row = tokens[n] - first_row;
  keys[n] = static_cast<int32_t>(row >= 0 && row < rows ? row : rows);
  order[n] = n;
}

// A warp takes piece blockIdx.x * kSumWarps + its index, and 32 vectors of columns. partial
// [2, pieces, D]: the sums of the piece's first run where it started before the piece, and of its
// last run where it starts here and goes on. Rows of the table are read together with those of dy
// that end their runs, so that many loads are under way at once.
template <class T, int kWidth>
__global__ void __launch_bounds__(32 * kSumWarps, 32 / kSumWarps)
    SumRunsKernel(const int32_t* __restrict__ keys, const int32_t* __restrict__ order, int count,
                  const T* __restrict__ dy, int64_t rows, int64_t width, float scale,
                  float* __restrict__ dtable, float* __restrict__ partial, int pieces) {
  constexpr int kUnroll = 4;
  static_assert(kPiece == 32 && kPiece % kUnroll == 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int piece = static_cast<int>(blockIdx.x) * kSumWarps + static_cast<int>(threadIdx.x) / 32;
  if (piece >= pieces) return;
  const int64_t column = (int64_t{blockIdx.y} * 32 + lane) * kWidth;
  const bool inside = column < width;

  // Of each position, a lane each: the key, or `rows` beyond the end. Tokens that are elsewhere
  // have it too and come last.
  const int own = piece * kPiece + lane;
  const auto key_at = [&](int n) { return n >= 0 && n < count ? keys[n] : static_cast<int>(rows); };
  const int32_t own_key = key_at(own), own_order = own < count ? order[own] : 0;
  const int32_t before = own > 0 ? key_at(own - 1) : -1, after = key_at(own + 1);
  const bool here = own_key < rows;
  const int size = __popc(__ballot_sync(0xffffffffu, here));
  // Positions, a bit each, that end a run or the piece, and those whose run is in this piece alone.
  const unsigned ends =
      __ballot_sync(0xffffffffu, here && (lane == kPiece - 1 || after != own_key));
  const bool from_before = __any_sync(0xffffffffu, lane == 0 && before == own_key);
  unsigned whole = ends & ~__ballot_sync(0xffffffffu, lane == kPiece - 1 && after == own_key);
  if (from_before) whole &= ~(ends & -ends);

  float sum[kWidth] = {};
  for (int base = 0; base < size; base += kUnroll) {
    Vector<T, kWidth> values[kUnroll];
    Vector<float, kWidth> table[kUnroll];
    float* to[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = base + u;
      const int64_t key = __shfl_sync(0xffffffffu, own_key, at);
      const int64_t n = __shfl_sync(0xffffffffu, own_order, at);
      to[u] = dtable + key * width + column;
      if (inside && at < size) values[u] = LoadVector<kWidth>(dy + n * width + column);
      if (inside && (whole >> at & 1) != 0) table[u] = LoadVector<kWidth>(to[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = base + u;
      if (!inside || at >= size) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] += values[u][i];
      if ((ends >> at & 1) == 0) continue;
      Vector<float, kWidth> result;
      if ((whole >> at & 1) != 0) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) result.Set(i, table[u][i] + scale * sum[i]);
      } else {
        const bool first = from_before && (ends & ((1u << at) - 1)) == 0;
        to[u] = partial + ((first ? 0 : int64_t{pieces}) + piece) * width + column;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) result.Set(i, sum[i]);
      }
      StoreVector(to[u], result);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] = 0;
    }
  }
}

// Adds up the parts of a run of `key` that starts in `piece` and goes on: the block's warps take
// the pieces in turn, then the block adds up what its warps have. `sums` is shared memory.
constexpr int kJoinWarps = 8;
template <int kWidth>
__device__ void JoinRun(const int32_t* __restrict__ keys, const float* __restrict__ partial,
                        int pieces, int piece, int32_t key, int64_t width, float scale,
                        float* __restrict__ dtable, float (*sums)[32 * kWidth]) {
  // The run reaches pieces piece + 1 to `final`: the last one that starts with its key.
  int final = piece + 1;
  for (int beyond = pieces; beyond - final > 1;) {
    const int middle = (final + beyond) / 2;
    (keys[middle * kPiece] == key ? final : beyond) = middle;
  }

  constexpr int kUnroll = 4;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_column = int64_t{blockIdx.y} * 32 * kWidth;
  const int64_t column = first_column + lane * kWidth;
  float sum[kWidth] = {};
  if (column < width) {
    if (warp == 0) {
      const Vector<float, kWidth> start =
          LoadVector<kWidth>(partial + (int64_t{pieces} + piece) * width + column);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] = start[i];
    }
    for (int j = piece + 1 + warp; j <= final; j += kJoinWarps * kUnroll) {
      Vector<float, kWidth> values[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int at = j + u * kJoinWarps;
        if (at <= final) values[u] = LoadVector<kWidth>(partial + int64_t{at} * width + column);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (j + u * kJoinWarps > final) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum[i] += values[u][i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[warp][lane * kWidth + i] = sum[i];
  __syncthreads();
  const int c = static_cast<int>(threadIdx.x);
  if (c < 32 * kWidth && first_column + c < width) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kJoinWarps; ++w) total += sums[w][c];
    dtable[key * width + first_column + c] += scale * total;
  }
  __syncthreads();
}

// A block looks for such runs in kJoinPieces pieces from blockIdx.x * kJoinPieces on; most often
// there are none.
constexpr int kJoinPieces = 8;
template <int kWidth>
__global__ void __launch_bounds__(32 * kJoinWarps)
    JoinRunsKernel(const int32_t* __restrict__ keys, const float* __restrict__ partial, int pieces,
                   int64_t rows, int64_t width, float scale, float* __restrict__ dtable) {
  __shared__ float sums[kJoinWarps][32 * kWidth];
  const int first = static_cast<int>(blockIdx.x) * kJoinPieces;
  const int lane = static_cast<int>(threadIdx.x) % 32, piece = first + lane;
  // The last piece has no successor. Of a full piece, the last run is that of its last key.
  int32_t key = 0;
  bool starts = false;
  if (lane < kJoinPieces && piece + 1 < pieces) {
    const int begin = piece * kPiece, end = begin + kPiece;
    key = keys[end - 1];
    const bool from_before = begin > 0 && keys[begin] == key && keys[begin - 1] == key;
    starts = key < rows && !from_before && keys[end] == key;
  }
  // All warps of the block see the same.
  for (unsigned left = __ballot_sync(0xffffffffu, starts); left != 0; left &= left - 1) {
    const int at = __ffs(static_cast<int>(left)) - 1;
    JoinRun<kWidth>(keys, partial, pieces, first + at, __shfl_sync(0xffffffffu, key, at), width,
                    scale, dtable, sums);
  }
}

}  // namespace

void EmbeddingForwardCuda(const EmbeddingForwardArgs& args) {
  const char* kernel = "embedding_forward";
  const int64_t rows = args.table.dim(0), width = args.table.dim(1);
  DispatchCuda(kernel, args.table, [&]<class T>(T) {
    constexpr int kWidth = kVectorWidth<T>;
    const T* table = args.table.data<T>();
    T* y = args.y.data<T>();
    const bool vectors = Aligned<kWidth>(table, y) && width % kWidth == 0;
    Launch(kernel, vectors ? ForwardKernel<T, kWidth> : ForwardKernel<T, 1>,
           static_cast<unsigned>(args.tokens.size()), kForwardThreads, 0,
           args.tokens.data<int32_t>(), table, args.first_row, rows, width,
           static_cast<float>(args.scale), y);
  });
}

void EmbeddingBackwardCuda(const EmbeddingBackwardArgs& args) {
  const char* kernel = "embedding_backward";
  const int64_t rows = args.dtable.dim(0), width = args.dtable.dim(1);
  EYRIE_CHECK(args.tokens.size() < (int64_t{1} << 30) && rows < (int64_t{1} << 30), kernel,
              ": too many tokens or rows");
  const int count = static_cast<int>(args.tokens.size());
  if (count == 0) return;
  const EmbeddingWorkspace layout(count, width);
  const int pieces = static_cast<int>(layout.pieces);
  float* workspace = args.workspace.data<float>();
  const auto list = [&](int i) { return reinterpret_cast<int32_t*>(workspace + layout.lists[i]); };
  int32_t *keys = list(2), *order = list(3);
  constexpr int kThreads = 256;
  Launch(kernel, KeyKernel, Pieces(count, kThreads), kThreads, 0, args.tokens.data<int32_t>(),
         count, args.first_row, rows, list(0), list(1));
  const int bits = std::bit_width(static_cast<uint64_t>(rows));  // of a key
  const auto sort = [&](void* scratch, size_t& bytes) {
    EYRIE_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch, bytes, list(0), keys, list(1), order,
                                                     count, 0, bits, ComputeStream()));
  };
  size_t sort_bytes = 0;
  sort(nullptr, sort_bytes);  // asks how much
  EYRIE_CHECK(sort_bytes <= static_cast<size_t>(layout.sort_bytes), kernel, ": sorting ", count,
              " tokens takes ", sort_bytes, " bytes");
  sort(workspace + layout.sort, sort_bytes);

  constexpr int kWidth = 4;
  float *partial = workspace + layout.partial, *dtable = args.dtable.data<float>();
  const float scale = static_cast<float>(args.scale);
  DispatchCuda(kernel, args.dy, [&]<class T>(T) {
    const T* dy = args.dy.data<T>();
    const bool vectors =
        Aligned<kWidth>(dy) && Aligned<kWidth>(dtable, partial) && width % kWidth == 0;
    const unsigned tiles = Pieces(width, 32 * (vectors ? kWidth : 1));
    Launch(kernel, vectors ? SumRunsKernel<T, kWidth> : SumRunsKernel<T, 1>,
           dim3(Pieces(pieces, kSumWarps), tiles), 32 * kSumWarps, 0, keys, order, count, dy, rows,
           width, scale, dtable, partial, pieces);
    Launch(kernel, vectors ? JoinRunsKernel<kWidth> : JoinRunsKernel<1>,
           dim3(Pieces(pieces, kJoinPieces), tiles), 32 * kJoinWarps, 0, keys, partial, pieces,
           rows, width, scale, dtable);
  });
}

}  // namespace eyrie
