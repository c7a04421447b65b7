// Attention on a GPU: what runs before and after the main kernels, and the choice among these.
#include <cmath>
#include <type_traits>

#include "core/early_launch.cuh"
#include "core/round.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Joins the parts of the forward pass, a row a warp: lse = log sum exp(lse of a part), and o is
// the mean of the parts' o weighted by exp(lse of a part - lse).
template <class T>
__global__ void __launch_bounds__(kThreads)
    JoinPartsKernel(const ForwardOutputs<T> out, int64_t rows, int width) {
  LetNextStart();
  AwaitEarlier();
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest = -INFINITY;
  for (int part = 0; part < out.parts; ++part) {
    largest = fmaxf(largest, out.partial_lse[part * rows + row]);
  }
  float sum = 0.0f;
  for (int part = 0; part < out.parts; ++part) {
    sum += expf(out.partial_lse[part * rows + row] - largest);
  }
  if (lane == 0) out.lse[row] = largest + logf(sum);
  for (int column = 4 * lane; column < width; column += 4 * 32) {
    float mean[4] = {};
    for (int part = 0; part < out.parts; ++part) {
      const float weight = expf(out.partial_lse[part * rows + row] - largest) / sum;
      const auto o = LoadVector<4>(out.partial_o + (part * rows + row) * width + column);
      for (int c = 0; c < 4; ++c) mean[c] = fmaf(weight, o[c], mean[c]);
    }
    Vector<T, 4> result;
    for (int c = 0; c < 4; ++c) result.Set(c, mean[c]);
    StoreVector(out.o + row * width + column, result);
  }
}

// Records and sights of the backward pass; a block a tile of `tile_rows` query rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    DescribeRowsKernel(const AttentionView<T> view, const T* o, const T* dout, const float* lse,
                       int tile_rows, RowRecord* records, int2* sights) {
  const int row_tiles = static_cast<int>(gridDim.x) / view.sequences;
  const int b = static_cast<int>(blockIdx.x) / row_tiles;
  const int row_begin = static_cast<int>(blockIdx.x) % row_tiles * tile_rows;
  const int row_end = min(row_begin + tile_rows, view.rows());
  static_assert(kRecordRows % kWgmmaStreamedRows == 0 && kRecordRows % kPlainTiles.streamed == 0);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll 4
  for (int row = row_begin + warp; row < row_end; row += kWarps) {
    const T *o_row = view.QueryRow(o, b, row), *dout_row = view.QueryRow(dout, b, row);
    float sum = 0.0f;
    for (int column = 4 * lane; column < view.width; column += 4 * 32) {
      const auto left = LoadVector<4>(o_row + column), right = LoadVector<4>(dout_row + column);
      for (int c = 0; c < 4; ++c) sum = fmaf(left[c], right[c], sum);
    }
    sum = WarpSum(sum);
    if (lane == 0) {
      const int64_t at = static_cast<int64_t>(b) * view.rows() + row;
      const int token = row / view.heads;
      records[view.Record(b, row)] = {lse[at] * kLog2E, sum, view.FirstKey(b, token), token};
    }
  }
  for (int row = row_end + static_cast<int>(threadIdx.x); row < row_begin + tile_rows;
       row += kThreads) {
    records[view.Record(b, row)] = {0.0f, 0.0f, INT_MAX, INT_MIN};
  }
  if (warp != 0) return;
  int first_min = INT_MAX, first_max = INT_MIN;
  for (int row = row_begin + lane; row < row_end; row += 32) {
    const int first = view.FirstKey(b, row / view.heads);
    first_min = min(first_min, first);
    first_max = max(first_max, first);
  }
  first_min = __reduce_min_sync(0xffffffffu, first_min);
  first_max = __reduce_max_sync(0xffffffffu, first_max);
  if (lane == 0) sights[blockIdx.x] = make_int2(first_min, first_max);
}

// to [B, count, dh] = the sum over parts, in their order, of rows from `first_key` on.
template <class T>
__global__ void __launch_bounds__(kThreads)
    SumPartsKernel(const AttentionView<T> view, const BackwardSums in, float* sums, int first_key,
                   int count, T* to) {
  const int vectors = view.width / 4;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= int64_t{view.sequences} * count * vectors) return;
  const int column = static_cast<int>(i % vectors) * 4;
  const int64_t row = i / vectors;
  const int b = static_cast<int>(row / count), key = first_key + static_cast<int>(row % count);
  float total[4] = {};
#pragma unroll 4
  for (int part = 0; part < in.parts; ++part) {
    const auto sum = LoadVector<4>(in.Row(view, sums, part, b, key) + column);
    for (int c = 0; c < 4; ++c) total[c] += sum[c];
  }
  Vector<T, 4> result;
  for (int c = 0; c < 4; ++c) result.Set(c, total[c]);
  StoreVector(to + row * view.width + column, result);
}

template <class T>
T* Pointer(const char* kernel, const Tensor& tensor) {
  if (reinterpret_cast<uintptr_t>(tensor.raw) % 16 != 0) {
    ThrowFailure(kernel, ": a tensor does not start at a multiple of 16 bytes");
  }
  return tensor.data<T>();
}

template <class T, class Args>
AttentionView<T> ViewOf(const char* kernel, const Args& args) {
  const AttentionSizes sizes = SizesOf(args);
  if (sizes.width % 4 != 0 || sizes.width > kMaxAttentionCudaWidth) {
    ThrowFailure(kernel, ": no CUDA body for a head width of ", sizes.width);
  }
  if (sizes.rows() > INT_MAX / 2 || sizes.keys() > INT_MAX / 2) {
    ThrowFailure(kernel, ": more rows in a sequence than the CUDA body counts");
  }
  return {.q = Pointer<T>(kernel, args.q),
          .k = Pointer<T>(kernel, args.k),
          .v = Pointer<T>(kernel, args.v),
          .past_k = Pointer<T>(kernel, args.past_k),
          .past_v = Pointer<T>(kernel, args.past_v),
          .positions = args.positions.template data<int32_t>(),
          .sequences = static_cast<int>(sizes.sequences),
          .tokens = static_cast<int>(sizes.tokens),
          .heads = static_cast<int>(sizes.heads),
          .width = static_cast<int>(sizes.width),
          .past = static_cast<int>(sizes.past),
          // Nobody sees further than all keys; so a window fits an int.
          .window = static_cast<int>(std::min(sizes.window, sizes.keys())),
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes.width)))};
}

// Whether a pass runs on warpgroup products: where a sequence fills a tile of their query rows.
bool UsesWgmma(const AttentionSizes& sizes, const AttentionTiles& tiles) {
  return tiles.tensor_cores && sizes.rows() >= kHeldByTensorCores && AttentionRunsWgmma();
}

}  // namespace

void AttentionForwardCuda(const AttentionForwardArgs& args) {
  constexpr const char* kKernel = "attention_forward";
  DispatchCuda(kKernel, args.q, [&]<class T>(T) {
    const AttentionView<T> view = ViewOf<T>(kKernel, args);
    const AttentionSizes sizes = SizesOf(args);
    const AttentionTiles tiles = TilesFor(args.q.dtype == DType::kBF16, sizes.width);
    const int64_t rows = sizes.sequences * sizes.rows();
    ForwardOutputs<T> out{.o = Pointer<T>(kKernel, args.o),
                          .lse = args.lse.data<float>(),
                          .parts = ForwardParts(sizes, tiles.forward)};
    if (out.parts > 1) {
      out.partial_o = Pointer<float>(kKernel, args.workspace);
      out.partial_lse = out.partial_o + out.parts * rows * sizes.width;
    }
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      // In parts are few queries with many keys, as in decoding.
      if (UsesWgmma(sizes, tiles) && out.parts == 1) {
        AttentionForwardWgmma(view, out);
      } else if (tiles.tensor_cores) {
        AttentionForwardMma(view, out);
      } else {
        AttentionForwardPlain(view, out);
      }
    } else {
      AttentionForwardPlain(view, out);
    }
    if (out.parts > 1) {
      LaunchEarly("attention_forward join", JoinPartsKernel<T>, dim3(Pieces(rows, kWarps)),
                  dim3(kThreads), 0, out, rows, view.width);
    }
  });
}

void AttentionBackwardCuda(const AttentionBackwardArgs& args) {
  constexpr const char* kKernel = "attention_backward";
  DispatchCuda(kKernel, args.q, [&]<class T>(T) {
    const AttentionView<T> view = ViewOf<T>(kKernel, args);
    const AttentionSizes sizes = SizesOf(args);
    const AttentionTiles tiles = TilesFor(args.q.dtype == DType::kBF16, sizes.width);
    const BackwardWorkspace at = BackwardWorkspaceFor(sizes, tiles.backward);
    float* workspace = Pointer<float>(kKernel, args.workspace);
    RowRecord* records = reinterpret_cast<RowRecord*>(workspace + at.records);
    int2* sights = reinterpret_cast<int2*>(workspace + at.sights);
    const BackwardSums sums{.dk = workspace + at.dk,
                            .dv = workspace + at.dv,
                            .parts = BackwardParts(sizes, tiles.backward)};
    const T* dout = Pointer<T>(kKernel, args.dout);
    T* dq = Pointer<T>(kKernel, args.dq);
    const bool wgmma = std::is_same_v<T, __nv_bfloat16> && UsesWgmma(sizes, tiles);
    const int tile_rows = wgmma ? kWgmmaStreamedRows : tiles.backward.streamed;
    const int64_t row_tiles = sizes.sequences * CeilDiv(sizes.rows(), tile_rows);
    Launch("attention_backward rows", DescribeRowsKernel<T>, dim3(static_cast<unsigned>(row_tiles)),
           dim3(kThreads), 0, view, Pointer<T>(kKernel, args.o), dout, args.lse.data<float>(),
           tile_rows, records, sights);
    const BackwardInputs in{.records = records, .sights = sights};
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      if (wgmma) {
        AttentionBackwardKeysWgmma(view, dout, in, sums);
        AttentionBackwardQueriesWgmma(view, dout, records, dq);
      } else if (tiles.tensor_cores) {
        AttentionBackwardMma(view, dout, in, dq, sums);
      } else {
        AttentionBackwardPlain(view, dout, in, dq, sums);
      }
    } else {
      AttentionBackwardPlain(view, dout, in, dq, sums);
    }
    const auto sum_parts = [&](const Tensor& to, float* from, int first_key, int count) {
      if (!to.defined()) return;
      const int64_t vectors = int64_t{view.sequences} * count * (view.width / 4);
      Launch("attention_backward sums", SumPartsKernel<T>, dim3(Pieces(vectors, kThreads)),
             dim3(kThreads), 0, view, sums, from, first_key, count, Pointer<T>(kKernel, to));
    };
    sum_parts(args.dk, sums.dk, 0, view.tokens);
    sum_parts(args.dv, sums.dv, 0, view.tokens);
    sum_parts(args.dpast_k, sums.dk, -view.past, view.past);
    sum_parts(args.dpast_v, sums.dv, -view.past, view.past);
  });
}

}  // namespace eyrie
