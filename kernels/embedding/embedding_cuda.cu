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

template <int kWidth>
__device__ __forceinline__ void AddToRow(float* to, float scale, const float (&sum)[kWidth]) {
  Vector<float, kWidth> values = LoadVector<kWidth>(to);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.Set(i, values[i] + scale * sum[i]);
  StoreVector(to, values);
}

// A warp takes piece blockIdx.x * kSumWarps + its index, and 32 vectors of columns. partial
// [2, pieces, D]: the sums of the piece's first run where it started before the piece, and of its
// last run where it starts here and goes on.
template <class T, int kWidth>
__global__ void __launch_bounds__(32 * kSumWarps)
    SumRunsKernel(const int32_t* __restrict__ keys, const int32_t* __restrict__ order, int count,
                  const T* __restrict__ dy, int64_t rows, int64_t width, float scale,
                  float* __restrict__ dtable, float* __restrict__ partial, int pieces) {
  constexpr int kUnroll = 8;
  static_assert(kPiece % kUnroll == 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int piece = static_cast<int>(blockIdx.x) * kSumWarps + static_cast<int>(threadIdx.x) / 32;
  if (piece >= pieces) return;
  const int begin = piece * kPiece, size = min(kPiece, count - begin);
  const int32_t own_key = lane < size ? keys[begin + lane] : -1;
  const int32_t own_order = lane < size ? order[begin + lane] : 0;
  const int32_t before = begin > 0 ? keys[begin - 1] : -1;
  const int32_t after = begin + size < count ? keys[begin + size] : -1;
  const int64_t column = (int64_t{blockIdx.y} * 32 + lane) * kWidth;
  const bool inside = column < width;

  float sum[kWidth] = {};
  int start = 0;  // of the run
  for (int base = 0; base < size; base += kUnroll) {
    Vector<T, kWidth> values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int key = __shfl_sync(0xffffffffu, own_key, base + u);
      const int64_t n = __shfl_sync(0xffffffffu, own_order, base + u);
      if (inside && key >= 0 && key < rows) values[u] = LoadVector<kWidth>(dy + n * width + column);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = base + u;
      const int key = __shfl_sync(0xffffffffu, own_key, at);
      const int next = __shfl_sync(0xffffffffu, own_key, min(at + 1, kPiece - 1));
      if (key < 0 || key >= rows) continue;  // beyond the end, or a token that is elsewhere
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] += inside ? values[u][i] : 0.0f;
      const bool last = at + 1 == size;
      if (!last && next == key) continue;
      // The run ends here, or the piece does.
      const bool from_before = start == 0 && before == key;
      const bool goes_on = last && after == key;
      if (inside && !from_before && !goes_on) {
        AddToRow<kWidth>(dtable + key * width + column, scale, sum);
      } else if (inside) {
        float* to = partial + ((from_before ? 0 : int64_t{pieces}) + piece) * width + column;
        Vector<float, kWidth> kept;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) kept.Set(i, sum[i]);
        StoreVector(to, kept);
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] = 0;
      start = at + 1;
    }
  }
}

// Adds up the parts of the run that starts in piece blockIdx.x and goes on, if one does: warps take
// the pieces in turn, then the block adds up what its warps have.
constexpr int kJoinWarps = 8;
template <int kWidth>
__global__ void __launch_bounds__(32 * kJoinWarps)
    JoinRunsKernel(const int32_t* __restrict__ keys, const float* __restrict__ partial, int pieces,
                   int64_t rows, int64_t width, float scale, float* __restrict__ dtable) {
  const int piece = static_cast<int>(blockIdx.x);
  const int begin = piece * kPiece, end = begin + kPiece;
  // The last piece has no successor. Of a full piece, the last run is that of its last key.
  if (piece + 1 >= pieces) return;
  const int32_t key = keys[end - 1];
  const bool from_before = begin > 0 && keys[begin] == key && keys[begin - 1] == key;
  if (key >= rows || from_before || keys[end] != key) return;
  // The run reaches pieces piece + 1 to `final`: the last one that starts with its key.
  int final = piece + 1;
  for (int beyond = pieces; beyond - final > 1;) {
    const int middle = (final + beyond) / 2;
    (keys[middle * kPiece] == key ? final : beyond) = middle;
  }

  constexpr int kUnroll = 4;
  __shared__ float sums[kJoinWarps][32 * kWidth];
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
  if (c >= 32 * kWidth || first_column + c >= width) return;
  float total = 0;
#pragma unroll
  for (int w = 0; w < kJoinWarps; ++w) total += sums[w][c];
  dtable[key * width + first_column + c] += scale * total;
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
           dim3(static_cast<unsigned>(pieces), tiles), 32 * kJoinWarps, 0, keys, partial, pieces,
           rows, width, scale, dtable);
  });
}

}  // namespace eyrie
