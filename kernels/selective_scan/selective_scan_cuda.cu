// CUDA bodies of the selective scan's forward pass and of its summaries; selective_scan.cuh says
// how they work. B sequences, T tokens, E channels, N states.
#include "kernels/selective_scan/selective_scan.cuh"
#include "kernels/selective_scan/selective_scan_cuda.h"

namespace eyrie {
namespace selective_scan {
namespace {

template <class T>
struct ForwardTensors {
  Inputs<T> in;
  const float* skip;
  const float* first;  // what each chunk starts from, [B, chunks, E, N]; null: zeros
  T* out;
  float* h_last;  // of the last chunk; optional
};

template <class T, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    ForwardKernel(const Plan plan, const ForwardTensors<T> tensors) {
  constexpr int kMine = kTile / kWarps;  // tokens of a tile whose shared part a thread computes
  constexpr int kPadded = kWarps * kThreadStates;
  __shared__ ScanTile<kWarps> tile;
  __shared__ float parts[kWarps][kTile][kColumns];  // of the outputs, by the warps' states
  const Inputs<T>& in = tensors.in;
  const Place place(plan, blockIdx.z, blockIdx.x);
  const int begin = blockIdx.y * plan.chunk, end = min(plan.time, begin + plan.chunk);
  const float bias = place.exists ? in.dt_bias[place.channel] : 0;
  const float skip = place.exists ? tensors.skip[place.channel] : 0;
  float rates[kThreadStates], h[kThreadStates] = {};
  LoadRates(plan, place, in.a_log, rates);
  const int64_t index = int64_t{place.b} * plan.chunks + blockIdx.y;
  if (tensors.first != nullptr) {
    LoadStates(tensors.first + place.StateOffset(plan, index), place.count(plan), h);
  }

  // The next tile's inputs travel while this one is scanned.
  BcTile<T, kWarps, kTile> bc;
  T next_x[kMine], next_dt[kMine], next_z[kMine];
  int next_position = 1;
  const auto load = [&](int first) {
    next_position = LoadPosition(plan, place, in.positions, first, min(kTile, end - first));
    bc.Load(plan, in, place.b, first, end);
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      const int t = first + k * kWarps + place.warp;
      const bool exists = t < end && place.exists;
      const int64_t at = exists ? place.Offset(plan, t) : 0;
      next_x[k] = exists ? in.x[at] : FromFloat<T>(0);
      next_dt[k] = exists ? in.dt[at] : FromFloat<T>(0);
      next_z[k] = exists ? in.z[at] : FromFloat<T>(0);
    }
  };
  load(begin);
  for (int first = begin; first < end; first += kTile) {
    const unsigned starts = Starts(next_position);
    float x[kMine], z[kMine];
    bc.Store(tile.bc);
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      const int t = k * kWarps + place.warp;
      x[k] = ToFloat(next_x[k]);
      z[k] = ToFloat(next_z[k]);
      const bool exists = first + t < end && place.exists;
      const float delta = exists ? Softplus(ToFloat(next_dt[k]) + bias) : 0;
      tile.step[t][place.lane] = {delta, delta * x[k]};
    }
    __syncthreads();
    if (first + kTile < end) load(first + kTile);
#pragma unroll 4
    for (int t = 0; t < kTile; ++t) {
      const float2 token = tile.step[t][place.lane];
      if (starts >> t & 1) {
#pragma unroll
        for (int i = 0; i < kThreadStates; ++i) h[i] = 0;
      }
      const float4 b4 = Four(&tile.bc[t][place.state]);
      const float4 c4 = Four(&tile.bc[t][kPadded + place.state]);
      const float b[] = {b4.x, b4.y, b4.z, b4.w}, c[] = {c4.x, c4.y, c4.z, c4.w};
      float y = 0;
#pragma unroll
      for (int i = 0; i < kThreadStates; ++i) {
        h[i] = fmaf(Exp2(token.x * rates[i]), h[i], token.y * b[i]);
        y = fmaf(c[i], h[i], y);
      }
      parts[place.warp][t][place.lane] = y;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      const int t = k * kWarps + place.warp;
      float y = skip * x[k];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) y += parts[w][t][place.lane];
      if (first + t < end && place.exists) {
        tensors.out[place.Offset(plan, first + t)] = FromFloat<T>(y * z[k] * Sigmoid(z[k]));
      }
    }
    // The next tile's step and B and C may be written: all have passed the barrier after reading
    // these. Its parts are written after one more.
  }
  if (tensors.h_last != nullptr && blockIdx.y == plan.chunks - 1) {
    StoreStates(h, place.count(plan), tensors.h_last + place.StateOffset(plan, place.b));
  }
}

// One summary: the maps of all chunks, linked.
template <bool kState, class T>
void Summarize(const char* name, const Plan& plan, const Inputs<T>& in, float* workspace,
               const Tensor& decay, const Tensor& increment) {
  float *maps = workspace, *sums = workspace + plan.all_states();
  FindChunkMaps<T, kState, !kState>(name, plan, {in, sums, maps, maps});
  LinkChunks<!kState>(name, plan, in.a_log, sums, maps, nullptr, increment.data<float>(),
                      decay.data<float>());
}

}  // namespace
}  // namespace selective_scan

void SelectiveScanForwardCuda(const SelectiveScanForwardArgs& args) {
  using namespace selective_scan;
  const char* name = "SelectiveScanForward";
  const Plan plan = ForwardPlan(args.x.shape, args.a_log.dim(1));
  DispatchCuda(name, args.x, [&]<class T>(T) {
    Inputs<T> in(args);
    in.x = args.x.data<T>();
    in.z = args.z.data<T>();
    const float* first = args.h0.data<float>();
    if (plan.chunks > 1) {
      float* states = args.workspace.data<float>();
      float* sums = states + plan.all_states();
      FindChunkMaps<T, true, false>(name, plan, {in, sums, states, nullptr});
      LinkChunks<false>(name, plan, in.a_log, sums, states, first, nullptr, nullptr);
      first = states;
    }
    const ForwardTensors<T> tensors{in, args.skip.data<float>(), first, args.out.data<T>(),
                                    args.h_last.data<float>()};
    const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.chunks),
                    static_cast<unsigned>(plan.batch));
    DispatchWarps(plan.states, [&](auto warps) {
      Launch(name, ForwardKernel<T, warps()>, grid, dim3(32 * warps()), 0, plan, tensors);
    });
  });
}

void SelectiveScanSummaryCuda(const SelectiveScanSummaryArgs& args) {
  using namespace selective_scan;
  DispatchCuda("SelectiveScanSummary", args.x, [&]<class T>(T) {
    Inputs<T> in(args);
    in.x = args.x.data<T>();
    Summarize<true>("SelectiveScanSummary", ForwardPlan(args.x.shape, args.a_log.dim(1)), in,
                    args.workspace.data<float>(), args.decay, args.increment);
  });
}

void SelectiveScanGradSummaryCuda(const SelectiveScanGradSummaryArgs& args) {
  using namespace selective_scan;
  DispatchCuda("SelectiveScanGradSummary", args.dout, [&]<class T>(T) {
    Inputs<T> in(args);
    in.z = args.z.data<T>();
    in.dout = args.dout.data<T>();
    Summarize<false>("SelectiveScanGradSummary", ForwardPlan(args.dout.shape, args.a_log.dim(1)),
                     in, args.workspace.data<float>(), args.decay, args.increment);
  });
}

}  // namespace eyrie
