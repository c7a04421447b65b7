// What rounding keeps from the products at the end of a sequence that a gradient enters there. The
// passes multiply w k and dC in bfloat16; of the last tokens' forget gates the gradients are small
// differences of such products, if the gates are nearly shut, and need them exactly.
#include "kernels/mlstm/mlstm_kernels.cuh"
#include "kernels/mma.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

constexpr int kThreads = 256, kLanes = kThreads / kMlstmTile, kColumns = 64;

__device__ __forceinline__ float Rest(float x) { return x - ToFloat(FromFloat<Bf16>(x)); }

// A block has kMlstmEndKeys rows of a head's dC and all tokens of the last tile, kLanes threads for
// each.
__global__ void __launch_bounds__(kThreads) EndKernel(const MlstmLayout sizes, const MlstmEnd in) {
  __shared__ float gradients[kMlstmEndKeys][kColumns], rests[kMlstmEndKeys][kColumns];
  __shared__ float values[kMlstmTile][kColumns + 1];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const int parts = MlstmEndParts(sizes);
  const int head = static_cast<int>(blockIdx.x) / parts,
            part = static_cast<int>(blockIdx.x) % parts;
  const int first_key = part * kMlstmEndKeys, begin = (sizes.tiles - 1) * kMlstmTile;
  const float* dc = in.dc + static_cast<int64_t>(head) * sizes.keys * sizes.values;

  float of_gradients[kMlstmEndKeys] = {}, of_rests[kMlstmEndKeys] = {};
  for (int first = 0; first < sizes.values; first += kColumns) {
    for (int i = thread; i < kMlstmEndKeys * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      const bool exists = first_key + row < sizes.keys && first + column < sizes.values;
      const float gradient =
          exists ? dc[static_cast<int64_t>(first_key + row) * sizes.values + first + column] : 0.0f;
      gradients[row][column] = gradient;
      rests[row][column] = Rest(gradient);
    }
    for (int i = thread; i < kMlstmTile * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      const bool exists = begin + row < sizes.tokens && first + column < sizes.values;
      values[row][column] =
          exists ? ToFloat(in.v[sizes.Row(head, begin + row) * sizes.values + first + column])
                 : 0.0f;
    }
    __syncthreads();
    for (int column = lane; column < kColumns; column += kLanes) {
      const float value = values[thread / kLanes][column];
#pragma unroll
      for (int i = 0; i < kMlstmEndKeys; ++i) {
        of_gradients[i] = fmaf(gradients[i][column], value, of_gradients[i]);
        of_rests[i] = fmaf(rests[i][column], value, of_rests[i]);
      }
    }
    __syncthreads();
  }

  const int in_tile = thread / kLanes, token = begin + in_tile;
  float of_key = 0.0f, of_state = 0.0f;
  if (token < sizes.tokens) {
    const Bf16* keys = in.k + sizes.Row(head, token) * sizes.keys + first_key;
    const float weight = in.after[head * sizes.padded() + token];
#pragma unroll
    for (int i = 0; i < kMlstmEndKeys; ++i) {
      if (first_key + i >= sizes.keys) break;
      const float weighted = weight * ToFloat(keys[i]);
      of_key = fmaf(weighted, of_rests[i], of_key);
      of_state = fmaf(Rest(weighted), of_gradients[i], of_state);
    }
  }
  of_key = QuadSum(of_key);
  of_state = QuadSum(of_state);
  static_assert(kLanes == 4);
  if (lane != 0) return;
  float* to = in.products + MlstmEndAt(sizes, head, part);
  to[in_tile] = of_key;
  to[kMlstmTile + in_tile] = of_state;
}

}  // namespace

void MultiplyEnd(const MlstmLayout& sizes, const MlstmEnd& in) {
  const dim3 grid(static_cast<unsigned>(sizes.all_heads() * MlstmEndParts(sizes)));
  Launch("mlstm end", EndKernel, grid, dim3(kThreads), 0, sizes, in);
}

}  // namespace eyrie
