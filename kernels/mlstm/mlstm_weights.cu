// What the passes need of the gates: sums of their logarithms and the stabilisers, by a scan over
// tiles with a warp for each, 32 at a time. In float64, as sums and differences of many logarithms
// cancel; m itself is rounded to float32 before anything is computed relative to it.
#include "core/early_launch.cuh"
#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {
namespace {

constexpr int kWarps = 32;  // of a block; fewer where tiles do not depend on each other
constexpr int kFewWarps = 4;

__device__ __forceinline__ double Up(double x, int distance) {
  return __shfl_up_sync(0xffffffffu, x, distance);
}

// What tokens do to m: m -> max(sum + m, maximum). A sum of kMlstmEmpty forgets what was before.
struct MaximumMap {
  double sum, maximum;

  __device__ double operator()(double m) const { return fmax(sum + m, maximum); }
};
// Of lanes 0 to this one, the lowest first.
__device__ __forceinline__ MaximumMap ComposeUpTo(int lane, MaximumMap map) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const MaximumMap before{Up(map.sum, distance), Up(map.maximum, distance)};
    if (lane >= distance) map = {before.sum + map.sum, map(before.maximum)};
  }
  return map;
}
__device__ __forceinline__ MaximumMap OfLane(int lane, const MaximumMap& map) {
  return {__shfl_sync(0xffffffffu, map.sum, lane), __shfl_sync(0xffffffffu, map.maximum, lane)};
}

// Two successive tokens of a lane.
struct Pair {
  double sum[2];  // of log f in the tile, up to each
  double log_i[2];
  double running[2];  // the largest log_i - sum of their document in the tile, up to each
  int document[2];
};

__device__ __forceinline__ Pair LoadPair(const MlstmLayout& sizes, const MlstmGateInputs& gates,
                                         int head, int lane, int first, int end, int last) {
  Pair pair;
  double f[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first + i;
    const bool exists = token < end;
    const int64_t at = sizes.Row(head, token);
    pair.document[i] = exists ? sizes.Document(head, token) : last;
    f[i] = exists && pair.document[i] != token ? gates.log_f[at] : 0.0;
    pair.log_i[i] = exists && gates.log_i != nullptr ? gates.log_i[at] : kMlstmEmpty;
  }
  double sum = f[0] + f[1];
  for (int distance = 1; distance < 32; distance *= 2) {
    const double before = Up(sum, distance);
    if (lane >= distance) sum += before;
  }
  const double previous = Up(sum, 1);
  pair.sum[0] = (lane == 0 ? 0.0 : previous) + f[0];
  pair.sum[1] = sum;

  // Documents rise with the tokens: two lanes in the same one have all between them in it.
  const double own[2] = {pair.log_i[0] - pair.sum[0], pair.log_i[1] - pair.sum[1]};
  const bool together = pair.document[0] == pair.document[1];
  double largest = together ? fmax(own[0], own[1]) : own[1];
  for (int distance = 1; distance < 32; distance *= 2) {
    const double before = Up(largest, distance);
    const int document = __shfl_up_sync(0xffffffffu, pair.document[1], distance);
    if (lane >= distance && document == pair.document[1]) largest = fmax(largest, before);
  }
  const double earlier = Up(largest, 1);
  const int document = __shfl_up_sync(0xffffffffu, pair.document[1], 1);
  const bool continues = lane > 0 && document == pair.document[0];
  pair.running[0] = continues ? fmax(own[0], earlier) : own[0];
  pair.running[1] = largest;
  return pair;
}

// Given m everywhere, tiles do not depend on each other, and blocks share those of a head.
template <bool kIndependent>
__global__ void __launch_bounds__(32 * (kIndependent ? kFewWarps : kWarps))
    WeightsKernel(const MlstmLayout sizes, const MlstmGateInputs gates, const MlstmVectors out) {
  AwaitEarlier();
  __shared__ MaximumMap maps[kWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int head = static_cast<int>(blockIdx.x);
  const double scale = rsqrt(static_cast<double>(sizes.keys));
  float before_m = 0.0f;
  if (gates.stabilised) {
    before_m = gates.before_m != nullptr ? gates.before_m[head] : static_cast<float>(kMlstmEmpty);
  }
  double m = before_m, total = 0.0;
  for (int round = 0; round < sizes.tiles; round += kWarps) {
    const int tile = kIndependent ? static_cast<int>(blockIdx.y) * kFewWarps + warp : round + warp,
              begin = tile * kMlstmTile;
    const int end = min(sizes.tokens, begin + kMlstmTile), first = begin + 2 * lane;
    const bool exists = tile < sizes.tiles;
    const int last = exists ? sizes.Document(head, end - 1) : 0;
    const bool forgets = last >= begin;
    const Pair pair = LoadPair(sizes, gates, head, lane, first, end, last);
    const double sum = __shfl_sync(0xffffffffu, pair.sum[1], 31);
    const double largest = __shfl_sync(0xffffffffu, pair.running[1], 31);
    MaximumMap before{}, after{}, all{};
    if constexpr (!kIndependent) {
      __syncthreads();  // of the round before, all have read the maps
      if (lane == 0) {
        maps[warp] = exists ? MaximumMap{forgets ? kMlstmEmpty : sum, sum + largest}
                            : MaximumMap{0.0, kMlstmEmpty};
      }
      __syncthreads();
      const MaximumMap until = ComposeUpTo(lane, maps[lane]);
      before = OfLane(max(warp - 1, 0), until);
      after = OfLane(warp, until);
      all = OfLane(31, until);
    }

    const auto m_at = [&](int token) { return gates.given_m[sizes.Row(head, token)]; };
    float m_before, m_after;
    if (!gates.stabilised) {
      m_before = tile == 0 ? before_m : 0.0f;
      m_after = 0.0f;
    } else if (gates.given_m == nullptr) {
      m_before = static_cast<float>(warp == 0 ? m : before(m));
      m_after = static_cast<float>(after(m));
    } else {
      m_before = tile == 0 || !exists ? before_m : m_at(begin - 1);
      m_after = exists ? m_at(end - 1) : 0.0f;
    }
    const bool ends = gates.stabilised && tile == sizes.tiles - 1;
    if (ends && gates.after_m != nullptr) m_after = gates.after_m[head];
    float m_token[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!gates.stabilised || first + i >= end) {
        m_token[i] = 0.0f;
      } else if (gates.given_m != nullptr) {
        m_token[i] = m_at(first + i);
      } else if (first + i == end - 1) {
        m_token[i] = m_after;
      } else {
        const bool fresh = pair.document[i] >= begin;
        const double carried = fresh ? kMlstmEmpty : (warp == 0 ? m : before(m));
        m_token[i] = static_cast<float>(pair.sum[i] + fmax(carried, pair.running[i]));
      }
    }
    const float neighbour = __shfl_up_sync(0xffffffffu, m_token[1], 1);

    if (exists) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = first + i;
        const int64_t at = head * sizes.padded() + token;
        const bool valid = token < end, fresh = pair.document[i] >= begin;
        float row = 0.0f, column = 0.0f, before_weight = 0.0f, after_weight = 0.0f;
        if (valid && gates.tokenwise) {
          const float m_previous = i == 1 ? m_token[0] : lane > 0 ? neighbour : m_before;
          const bool starts = pair.document[i] == token;
          const float log_decay = gates.log_f[sizes.Row(head, token)] + (m_previous - m_token[i]);
          const float decay = starts ? 0.0f : expf(log_decay);
          column = decay > 0.5f ? 1.0f : 0.0f;
          row = decay > 0.5f ? expm1f(log_decay) : decay;
          before_weight = static_cast<float>(scale);
          after_weight = expf(static_cast<float>(pair.log_i[i] - m_token[i]));
        } else if (valid) {
          const double reach = pair.sum[i] + (static_cast<double>(m_before) - m_token[i]);
          row = static_cast<float>(pair.sum[i] + (static_cast<double>(m_after) - m_token[i]));
          column = static_cast<float>(pair.sum[i] + (m_after - pair.log_i[i]));
          before_weight =
              fresh ? 0.0f : static_cast<float>(scale) * expf(static_cast<float>(reach));
          const double until_end = sum - pair.sum[i] + (pair.log_i[i] - m_after);
          after_weight = pair.document[i] == last ? expf(static_cast<float>(until_end)) : 0.0f;
        }
        if (gates.backward) {
          out.before_normaliser[at] = valid ? before_weight * out.dnormaliser[at] : 0.0f;
          if (valid) before_weight *= out.inverse_b[at];
        }
        out.row[at] = row;
        out.column[at] = column;
        out.before[at] = before_weight;
        out.after[at] = after_weight;
        if (valid && gates.maximum != nullptr) gates.maximum[sizes.Row(head, token)] = m_token[i];
      }
      if (lane == 0) {
        const double decay = sum + (static_cast<double>(m_before) - m_after);
        out.log_decay[static_cast<int64_t>(head) * sizes.tiles + tile] =
            static_cast<float>(forgets ? kMlstmEmpty : decay);
      }
    }
    if constexpr (kIndependent) return;
    m = all(m);
    total = fmax(total + all.sum, kMlstmEmpty);
  }
  if (thread != 0) return;
  if (gates.final_m != nullptr) {
    gates.final_m[head] = gates.stabilised ? static_cast<float>(m) : 0.0f;
  }
  if (gates.total_log_f != nullptr) gates.total_log_f[head] = static_cast<float>(total);
  if (gates.total_decay != nullptr) {
    const double after_m = gates.stabilised ? gates.after_m[head] : 0.0;
    gates.total_decay[head] = expf(static_cast<float>(total + (before_m - after_m)));
  }
}

}  // namespace

void MlstmWeights(const MlstmLayout& sizes, const MlstmGateInputs& gates, const MlstmVectors& out) {
  const auto heads = static_cast<unsigned>(sizes.all_heads());
  const bool whole =
      gates.final_m != nullptr || gates.total_log_f != nullptr || gates.total_decay != nullptr;
  if (gates.given_m != nullptr && !whole) {
    LaunchEarly("mlstm gates", WeightsKernel<true>, dim3(heads, Pieces(sizes.tiles, kFewWarps)),
                dim3(32 * kFewWarps), 0, sizes, gates, out);
  } else {
    LaunchEarly("mlstm gates", WeightsKernel<false>, dim3(heads), dim3(32 * kWarps), 0, sizes,
                gates, out);
  }
}

}  // namespace eyrie
