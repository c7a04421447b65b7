// C [m, n] = A [m, k] B [n, k]^T for m <= 16, in bfloat16 with float32 sums. All such a product
// does is to read B once, so everything here is about keeping memory busy:
//
// - A block takes tiles of 16 rows of B, one after another. Its eight warps split the columns of a
//   tile in chunks of 32, by turns, and their sums meet in shared memory, in a fixed order.
// - Each lane has several 16-byte loads of B under way, across the tiles' borders, and issues the
//   first ones before it waits for the kernel before, which may be what computes A (AwaitEarlier).
// - Independent products of the same A run in one kernel.
// - The tensor cores multiply, so that 8 rows of A take no longer than one: B's rows are the
//   16 rows of mma.m16n8k16, A's rows are its 8 columns. The order of a chunk's 32 columns does not
//   matter as long as it is the same in both, so a lane's fragments are 8 successive elements.
#include <algorithm>

#include "core/early_launch.cuh"
#include "core/few_rows.h"
#include "core/numbers.cuh"
#include "core/round.h"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileRows = 16, kChunk = 32;
constexpr int kBlocks = 2;  // a multiprocessor

// One product, or `batch` of them a stride apart.
struct Product {
  const Bf16 *a, *b;
  void* c;
  const void *bias, *added;  // may be null; `added` lies like c, and may be c
  int64_t stride_a, stride_b, stride_c, lda, ldb, ldc;
  int n, batch_tiles;  // tiles of one of the batch
  int first_tile;      // among those of all products
};
struct Products {
  Product product[kMostFewRowsProducts];
  int count, tiles, m, k;
};

// A tile's product and place.
struct Tile {
  __device__ __forceinline__ Tile(const Products& all, int tile) {
    int i = 0;
    while (i + 1 < all.count && tile >= all.product[i + 1].first_tile) ++i;
    index = i;
    const int local = tile - all.product[i].first_tile;
    batch = local / all.product[i].batch_tiles;
    row = local % all.product[i].batch_tiles * kTileRows;
  }
  int index, batch, row;
};

// Past the caches that it would only sweep: B is read once.
__device__ __forceinline__ uint4 LoadOnce(const Bf16* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
// Not before AwaitEarlier, nor through a cache that knows nothing of other kernels' writes.
__device__ __forceinline__ uint4 LoadWritten(const Bf16* from) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

// sums [16, 8] += rows [16, 16] columns [16, 8].
__device__ __forceinline__ void Mma(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Walks through the chunks that a warp takes of its block's tiles. Lane 4 r + t loads columns
// [8 t, 8 t + 8) of a chunk: of B's rows r and r + 8, and of A's rows r, r + 8, ...
template <int kGroups>
class Cursor {
 public:
  __device__ __forceinline__ Cursor(const Products& all, int steps)
      : steps_(steps), tile_(static_cast<int>(blockIdx.x)) {
    Locate(all);
  }
  __device__ __forceinline__ void Advance(const Products& all) {
    column_ += kWarps * kChunk;
    if (++step_ < steps_) return;
    tile_ += static_cast<int>(gridDim.x);
    Locate(all);
  }
  __device__ __forceinline__ void LoadB(const Products& all, uint4 (&to)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = column_ < all.k && 8 * i < b_rows_;
      to[i] = there ? LoadOnce(b_ + 8 * i * ldb_ + column_) : uint4{0, 0, 0, 0};
    }
  }
  __device__ __forceinline__ void LoadA(const Products& all, uint4 (&to)[kGroups]) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const bool there = column_ < all.k && 8 * i < a_rows_;
      to[i] = there ? LoadWritten(a_ + 8 * i * lda_ + column_) : uint4{0, 0, 0, 0};
    }
  }

 private:
  __device__ __forceinline__ void Locate(const Products& all) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    step_ = 0;
    column_ = warp * kChunk + lane % 4 * 8;
    b_rows_ = a_rows_ = 0;
    if (tile_ >= all.tiles) return;
    const Tile tile(all, tile_);
    const Product& product = all.product[tile.index];
    const int b_row = tile.row + lane / 4, a_row = lane / 4;
    b_rows_ = product.n - b_row;
    a_rows_ = all.m - a_row;
    ldb_ = product.ldb;
    lda_ = product.lda;
    b_ = product.b + tile.batch * product.stride_b + b_row * ldb_;
    a_ = product.a + tile.batch * product.stride_a + a_row * lda_;
  }

  const Bf16 *a_ = nullptr, *b_ = nullptr;
  int64_t lda_ = 0, ldb_ = 0;
  int b_rows_ = 0, a_rows_ = 0;  // that there are from the lane's first one on
  int steps_, tile_, step_ = 0, column_ = 0;
};

// The warps' sums of a tile, by A's row and B's row, padded against conflicts of banks.
constexpr int kRowStride = kTileRows + 4;

template <int kGroups, class C>
__device__ __forceinline__ void Finish(const Products& all, int tile_index,
                                       const float (&sums)[kGroups][4],
                                       float (&shared)[kWarps][8 * kGroups * kRowStride]) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int a_row = 8 * group + lane % 4 * 2 + i % 2, b_row = lane / 4 + i / 2 * 8;
      shared[thread / 32][a_row * kRowStride + b_row] = sums[group][i];
    }
  }
  __syncthreads();
  const int a_row = thread / kTileRows, b_row = thread % kTileRows;
  const Tile tile(all, tile_index);
  const Product& product = all.product[tile.index];
  const int column = tile.row + b_row;
  if (a_row >= all.m || column >= product.n) return;
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp][a_row * kRowStride + b_row];
  const int64_t at = tile.batch * product.stride_c + a_row * product.ldc + column;
  if (product.added != nullptr) sum += ToFloat(static_cast<const C*>(product.added)[at]);
  if (product.bias != nullptr) {
    sum += ToFloat(static_cast<const C*>(product.bias)[int64_t{tile.batch} * product.n + column]);
  }
  static_cast<C*>(product.c)[at] = FromFloat<C>(sum);
}

// kGroups: of eight rows of A. kDepth: chunks whose loads are under way.
template <int kGroups, int kDepth, class C>
__global__ void __launch_bounds__(kThreads, kBlocks)
    FewRowsKernel(const __grid_constant__ Products all) {
  static_assert(8 * kGroups * kTileRows <= kThreads);
  // Two of them, by turns: a tile's sums may still be read while the next one's are written.
  __shared__ float shared[2][kWarps][8 * kGroups * kRowStride];
  const int steps = (all.k + kWarps * kChunk - 1) / (kWarps * kChunk);
  const int blocks = static_cast<int>(gridDim.x);
  int tile = static_cast<int>(blockIdx.x), step = 0, turn = 0;
  const int items = CeilDiv(all.tiles - tile, blocks) * steps;

  LetNextStart();
  Cursor<kGroups> cursor(all, steps);
  Cursor<kGroups> first = cursor;
  uint4 a[kDepth][kGroups], b[kDepth][2];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    cursor.LoadB(all, b[d]);
    cursor.Advance(all);
  }
  AwaitEarlier();
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    first.LoadA(all, a[d]);
    first.Advance(all);
  }

  float sums[kGroups][4] = {};
  for (int item = 0; item < items; item += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (item + d >= items) break;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        Mma(sums[group], b[d][0].x, b[d][1].x, b[d][0].y, b[d][1].y, a[d][group].x, a[d][group].y);
        Mma(sums[group], b[d][0].z, b[d][1].z, b[d][0].w, b[d][1].w, a[d][group].z, a[d][group].w);
      }
      cursor.LoadB(all, b[d]);
      cursor.LoadA(all, a[d]);
      cursor.Advance(all);
      if (++step < steps) continue;
      Finish<kGroups, C>(all, tile, sums, shared[turn]);
      step = 0;
      turn = 1 - turn;
      tile += blocks;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[group][i] = 0;
      }
    }
  }
}

bool InVectors(const Tensor& tensor, int64_t ld, int64_t stride) {
  return reinterpret_cast<uintptr_t>(tensor.raw) % 16 == 0 && ld % 8 == 0 && stride % 8 == 0;
}

}  // namespace

bool IsFewRows(std::span<const GemmArgs> products) {
  const GemmArgs& first = products.front();
  return products.size() <= kMostFewRowsProducts &&
         std::all_of(products.begin(), products.end(), [&](const GemmArgs& args) {
           return args.trans_a == Trans::kNo && args.trans_b == Trans::kYes &&
                  args.m <= kMostFewRows && args.k % 8 == 0 && args.k > 0 &&
                  args.n * args.batch <= (1 << 24) && args.k <= (1 << 24) &&  // in ints
                  args.a.dtype == DType::kBF16 && args.m == first.m && args.k == first.k &&
                  args.c.dtype == first.c.dtype &&
                  (!args.bias.defined() || args.bias.dtype == args.c.dtype) &&
                  InVectors(args.a, args.lda, args.stride_a) &&
                  InVectors(args.b, args.ldb, args.stride_b);
         });
}

void FewRowsCuda(std::span<const GemmArgs> products) {
  Products all{};
  all.m = static_cast<int>(products.front().m);
  all.k = static_cast<int>(products.front().k);
  bool settled = true;
  for (const GemmArgs& args : products) {
    const auto batch_tiles = static_cast<int>(CeilDiv(args.n, kTileRows));
    all.product[all.count++] = {.a = args.a.data<Bf16>(),
                                .b = args.b.data<Bf16>(),
                                .c = args.c.raw,
                                .bias = args.bias.raw,
                                .added = args.accumulate ? args.c.raw : args.added.raw,
                                .stride_a = args.stride_a,
                                .stride_b = args.stride_b,
                                .stride_c = args.stride_c,
                                .lda = args.lda,
                                .ldb = args.ldb,
                                .ldc = args.ldc,
                                .n = static_cast<int>(args.n),
                                .batch_tiles = batch_tiles,
                                .first_tile = all.tiles};
    all.tiles += batch_tiles * static_cast<int>(args.batch);
    settled = settled && args.b_is_settled;
  }
  if (all.m == 0 || all.tiles == 0) return;
  // As few blocks as take no more rounds than the most that fit: all of them work equally long.
  const int most = kBlocks * Multiprocessors();
  const int rounds = CeilDiv(all.tiles, most);
  const auto blocks = static_cast<unsigned>(CeilDiv(all.tiles, rounds));
  DispatchCuda("few rows", products.front().c, [&]<class C>(C) {
    const auto kernel = all.m <= 8 ? FewRowsKernel<1, 6, C> : FewRowsKernel<2, 4, C>;
    if (settled) {
      LaunchEarly("few rows", kernel, dim3(blocks), dim3(kThreads), 0, all);
    } else {
      Launch("few rows", kernel, dim3(blocks), dim3(kThreads), 0, all);
    }
  });
}

}  // namespace eyrie
