// CUDA body of the selective scan's backward pass. B sequences, T tokens, E channels, N states.
//
// Chunks of 64 tokens are found and linked both ways (selective_scan.cuh). Then a block takes one
// chunk of one sequence, and one group of 32 channels after another: it runs forward through the
// chunk from the state before it and keeps the state before each run of eight tokens in shared
// memory; then, from the last run to the first, it computes the run's states once more, in
// registers, and goes back through them. Gradients of B and C are sums over channels: those of a
// lane's eight tokens by four states are 32 numbers, which the lanes add up so that each of them
// gets one of the sums, and adds it to its own place in shared memory, group after group. All sums
// are made in an order that depends on shapes alone.
#include "kernels/row_sum.cuh"
#include "kernels/selective_scan/selective_scan.cuh"
#include "kernels/selective_scan/selective_scan_cuda.h"

namespace eyrie {
namespace selective_scan {
namespace {

constexpr int kChunk = BackwardPlan::kChunk;  // tokens
constexpr int kRun = 8;                       // tokens whose states a thread has at once
constexpr int kRuns = kChunk / kRun;

template <class T>
struct BackwardTensors {
  Inputs<T> in;
  const float* skip;
  float* states;           // [B, chunks, E, N] before each chunk; becomes the chunk's share of dA
  const float* gradients;  // [B, chunks, E, N] of the states after each chunk
  T *dx, *ddt, *dz;
  float *dskip, *ddt_bias;  // [B, chunks, E] shares of the chunks
  float* slabs;             // [slabs, B, T, 2N]
};

template <int kWarps>
struct BackwardShared {
  static constexpr int kPadded = kWarps * kThreadStates;
  float delta[kChunk][kColumns], x[kChunk][kColumns], dy[kChunk][kColumns];
  alignas(16) float bc[kChunk][2 * kPadded];
  float dbc[kChunk][2 * kPadded];
  float4 kept[kRuns][32 * kWarps];  // each thread's states before each run
  // Of a run's tokens, what the warps' states add to y, to sum g B, and to sum g A a h.
  float parts[kWarps][kRun][3][kColumns];
};

// Gives each lane the sum over the warp of values[lane], by halves: lanes that differ in one bit
// swap the numbers that the other one is to add up. A template, so that all stay in registers.
template <int kHalf = 16>
__device__ __forceinline__ float SumForLane(float (&values)[32]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float sent = upper ? values[i] : values[i + kHalf];
    const float kept = upper ? values[i + kHalf] : values[i];
    values[i] = kept + __shfl_xor_sync(~0u, sent, kHalf);
  }
  if constexpr (kHalf > 1) {
    return SumForLane<kHalf / 2>(values);
  } else {
    return values[0];
  }
}

// One group of channels of one chunk.
template <class T, int kWarps>
class Group {
 public:
  using Shared = BackwardShared<kWarps>;
  __device__ Group(const BackwardPlan& plan, const BackwardTensors<T>& tensors, Shared& shared,
                   int chunk, const Place& place)
      : plan_(plan),
        tensors_(tensors),
        in_(tensors.in),
        shared_(shared),
        place_(place),
        begin_(chunk * kChunk),
        end_(min(plan.time, begin_ + kChunk)),
        index_(int64_t{place.b} * plan.chunks + chunk),
        bias_(place.exists ? in_.dt_bias[place.channel] : 0),
        skip_(place.exists ? tensors.skip[place.channel] : 0) {
    LoadRates(plan, place, in_.a_log, rates_);
  }

  // Called by all threads between barriers. `starts` has a bit a token.
  __device__ void Run(uint64_t starts) {
    starts_ = starts;
    LoadTokens();
    __syncthreads();
    KeepStates();
    LoadStates(tensors_.gradients + place_.StateOffset(plan_, index_), place_.count(plan_), carry_);
    float dskip = 0, ddt_bias = 0;
    for (int run = kRuns - 1; run >= 0; --run) {
      if (begin_ + run * kRun >= end_) continue;  // alike for all threads
      GoBack(run);
      __syncthreads();
      Finish(run, dskip, ddt_bias);
      __syncthreads();
    }
    StoreStates(drates_, place_.count(plan_), tensors_.states + place_.StateOffset(plan_, index_));
    shared_.parts[place_.warp][0][0][place_.lane] = dskip;
    shared_.parts[place_.warp][0][1][place_.lane] = ddt_bias;
    __syncthreads();
    if (place_.warp > 0 || !place_.exists) return;
    for (int w = 1; w < kWarps; ++w) {
      dskip += shared_.parts[w][0][0][place_.lane];
      ddt_bias += shared_.parts[w][0][1][place_.lane];
    }
    tensors_.dskip[index_ * plan_.channels + place_.channel] = dskip;
    tensors_.ddt_bias[index_ * plan_.channels + place_.channel] = ddt_bias;
  }

 private:
  __device__ bool Starts(int token) const { return (starts_ >> token & 1) != 0; }

  // What the channels of each token share; zeros where there is no token or channel.
  __device__ void LoadTokens() {
    const int lane = place_.lane;
#pragma unroll 4
    for (int token = place_.warp; token < kChunk; token += kWarps) {
      const bool exists = begin_ + token < end_ && place_.exists;
      const int64_t at = exists ? place_.Offset(plan_, begin_ + token) : 0;
      shared_.delta[token][lane] = exists ? Softplus(ToFloat(in_.dt[at]) + bias_) : 0;
      shared_.x[token][lane] = exists ? ToFloat(in_.x[at]) : 0;
      shared_.dy[token][lane] =
          exists ? GateGradient(ToFloat(in_.z[at]), ToFloat(in_.dout[at])) : 0;
    }
  }

  __device__ void KeepStates() {
    float h[kThreadStates];
    LoadStates(tensors_.states + place_.StateOffset(plan_, index_), place_.count(plan_), h);
    for (int run = 0; run < kRuns; ++run) {
      shared_.kept[run][threadIdx.x] = make_float4(h[0], h[1], h[2], h[3]);
      if (run == kRuns - 1) return;
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        const int token = run * kRun + j;
        const float delta = shared_.delta[token][place_.lane];
        const float step = delta * shared_.x[token][place_.lane];
        const float4 b = Four(&shared_.bc[token][place_.state]);
        if (Starts(token)) {
#pragma unroll
          for (int i = 0; i < kThreadStates; ++i) h[i] = 0;
        }
        h[0] = fmaf(Exp2(delta * rates_[0]), h[0], step * b.x);
        h[1] = fmaf(Exp2(delta * rates_[1]), h[1], step * b.y);
        h[2] = fmaf(Exp2(delta * rates_[2]), h[2], step * b.z);
        h[3] = fmaf(Exp2(delta * rates_[3]), h[3], step * b.w);
      }
    }
  }

  // Through a run's tokens forward and back. Leaves the parts of its sums.
  __device__ void GoBack(int run) {
    constexpr int kPadded = Shared::kPadded;
    const int lane = place_.lane;
    float decay[kRun][kThreadStates];    // a
    float decayed[kRun][kThreadStates];  // a h of the token before
    float values[kRun * kThreadStates];
    const float4 before = shared_.kept[run][threadIdx.x];
    float h[kThreadStates] = {before.x, before.y, before.z, before.w};
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const int token = run * kRun + j;
      const float delta = shared_.delta[token][lane], step = delta * shared_.x[token][lane];
      const float dy = shared_.dy[token][lane];
      const float4 b4 = Four(&shared_.bc[token][place_.state]);
      const float4 c4 = Four(&shared_.bc[token][kPadded + place_.state]);
      const float b[] = {b4.x, b4.y, b4.z, b4.w}, c[] = {c4.x, c4.y, c4.z, c4.w};
      const bool starts = Starts(token);
      float y = 0;
#pragma unroll
      for (int i = 0; i < kThreadStates; ++i) {
        decay[j][i] = starts ? 0 : Exp2(delta * rates_[i]);
        decayed[j][i] = starts ? 0 : decay[j][i] * h[i];
        h[i] = fmaf(step, b[i], decayed[j][i]);
        y = fmaf(c[i], h[i], y);
        values[j * kThreadStates + i] = dy * h[i];
      }
      shared_.parts[place_.warp][j][0][lane] = y;
    }
    AddToPlace(run, kPadded, values);

#pragma unroll
    for (int j = kRun - 1; j >= 0; --j) {
      const int token = run * kRun + j;
      const float delta = shared_.delta[token][lane], step = delta * shared_.x[token][lane];
      const float dy = shared_.dy[token][lane];
      const float4 b4 = Four(&shared_.bc[token][place_.state]);
      const float4 c4 = Four(&shared_.bc[token][kPadded + place_.state]);
      const float b[] = {b4.x, b4.y, b4.z, b4.w}, c[] = {c4.x, c4.y, c4.z, c4.w};
      const bool starts = Starts(token);
      float through = 0, rates = 0;
#pragma unroll
      for (int i = 0; i < kThreadStates; ++i) {
        const float g = fmaf(c[i], dy, carry_[i]), slope = g * decayed[j][i];
        values[j * kThreadStates + i] = g * step;
        through = fmaf(g, b[i], through);
        rates = fmaf(slope, rates_[i], rates);
        drates_[i] = fmaf(slope, delta, drates_[i]);
        carry_[i] = starts ? 0 : decay[j][i] * g;
      }
      shared_.parts[place_.warp][j][1][lane] = through;
      shared_.parts[place_.warp][j][2][lane] = rates;
    }
    AddToPlace(run, 0, values);
  }

  // Adds what a run gives dB (`column` 0) or dC (N, padded). Only this thread has its place.
  __device__ void AddToPlace(int run, int column, float (&values)[kRun * kThreadStates]) {
    const int token = run * kRun + place_.lane / kThreadStates;
    float& sum = shared_.dbc[token][column + place_.state + place_.lane % kThreadStates];
    sum += SumForLane(values);
  }

  // The gradients of a run's tokens, from the parts of all warps.
  __device__ void Finish(int run, float& dskip, float& ddt_bias) {
    const int lane = place_.lane;
#pragma unroll
    for (int j = place_.warp; j < kRun; j += kWarps) {
      const int token = run * kRun + j, t = begin_ + token;
      if (t >= end_ || !place_.exists) continue;
      const int64_t at = place_.Offset(plan_, t);
      const float raw = ToFloat(in_.dt[at]) + bias_, z = ToFloat(in_.z[at]);
      const float dout = ToFloat(in_.dout[at]);
      const float delta = shared_.delta[token][lane], x = shared_.x[token][lane];
      const float dy = shared_.dy[token][lane];
      float y = skip_ * x, through = 0, rates = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        y += shared_.parts[w][j][0][lane];
        through += shared_.parts[w][j][1][lane];
        rates += shared_.parts[w][j][2][lane];
      }
      const float s = Sigmoid(z);
      const float ddt = (kLn2 * rates + x * through) * Sigmoid(raw);
      tensors_.dz[at] = FromFloat<T>(dout * y * s * (1 + z * (1 - s)));
      tensors_.dx[at] = FromFloat<T>(skip_ * dy + delta * through);
      tensors_.ddt[at] = FromFloat<T>(ddt);
      dskip += dy * x;
      ddt_bias += ddt;
    }
  }

  const BackwardPlan& plan_;
  const BackwardTensors<T>& tensors_;
  const Inputs<T>& in_;
  Shared& shared_;
  const Place& place_;
  int begin_, end_;  // tokens
  int64_t index_;    // of the chunk among all sequences'
  float bias_, skip_;
  uint64_t starts_ = 0;
  float rates_[kThreadStates];
  float carry_[kThreadStates];        // the gradient that the token after hands over, decayed
  float drates_[kThreadStates] = {};  // of A
};

template <class T, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    BackwardKernel(const BackwardPlan plan, const BackwardTensors<T> tensors) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<kWarps>*>(memory);
  constexpr int kPadded = BackwardShared<kWarps>::kPadded;
  const int slab = blockIdx.x, chunk = blockIdx.y, b = blockIdx.z;
  const int begin = chunk * kChunk, end = min(plan.time, begin + kChunk);
  BcTile<T, kWarps, kChunk> bc;
  bc.Load(plan, tensors.in, b, begin, end);
  bc.Store(shared.bc);
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * 2 * kPadded; i += 32 * kWarps) {
    (&shared.dbc[0][0])[i] = 0;
  }
  for (int block = slab; block < plan.blocks; block += plan.slabs) {
    const Place place(plan, b, block);
    const int* positions = tensors.in.positions;
    const uint64_t early =
        Starts(LoadPosition(plan, place, positions, begin, min(32, end - begin)));
    const uint64_t late =
        Starts(LoadPosition(plan, place, positions, begin + 32, end - begin - 32));
    __syncthreads();  // the group before has been read
    Group<T, kWarps>(plan, tensors, shared, chunk, place).Run(late << 32 | early);
  }
  __syncthreads();
  // Rows of a slab hold dB_t and dC_t.
  const int pair = 2 * plan.states;
  float* to = tensors.slabs + slab * plan.slab_size() + (int64_t{b} * plan.time + begin) * pair;
  for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * pair; i += 32 * kWarps) {
    const int token = i / pair, j = i % pair;
    to[i] = shared.dbc[token][j < plan.states ? j : kPadded + j - plan.states];
  }
}

// The last 2N of each row of dbc := the sum of the slabs.
template <class T>
__global__ void AddSlabsKernel(int64_t count, int slabs, int pair, const float* from, int64_t row,
                               T* dbc) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
#pragma unroll 4
  for (int slab = 0; slab < slabs; ++slab) sum += from[slab * count + i];
  dbc[(i / pair + 1) * row - pair + i % pair] = FromFloat<T>(sum);
}

// dA_log = dA A.
struct RateOf {
  __device__ float operator()(int64_t i) const { return -Exp2(kLog2E * a_log[i]); }
  const float* a_log;
};
struct One {
  __device__ float operator()(int64_t) const { return 1; }
};

// The parts of the workspace.
struct Workspace {
  Workspace(const BackwardPlan& plan, float* memory)
      : states(memory),
        gradients(states + plan.all_states()),
        sums(gradients + plan.all_states()),
        dskip(sums + plan.all_sums()),
        ddt_bias(dskip + plan.all_sums()),
        slabs(ddt_bias + plan.all_sums()) {}
  float *states, *gradients, *sums, *dskip, *ddt_bias, *slabs;
};

}  // namespace
}  // namespace selective_scan

void SelectiveScanBackwardCuda(const SelectiveScanBackwardArgs& args) {
  using namespace selective_scan;
  const char* name = "SelectiveScanBackward";
  const BackwardPlan plan(args.x.shape, args.a_log.dim(1));
  if (args.x.size() == 0) return;
  const Workspace work(plan, args.workspace.data<float>());
  DispatchCuda(name, args.x, [&]<class T>(T) {
    Inputs<T> in(args);
    in.x = args.x.data<T>();
    in.z = args.z.data<T>();
    in.dout = args.dout.data<T>();
    FindChunkMaps<T, true, true>(name, plan, {in, work.sums, work.states, work.gradients});
    LinkChunks<false>(name, plan, in.a_log, work.sums, work.states, args.h0.data<float>(), nullptr,
                      nullptr);
    LinkChunks<true>(name, plan, in.a_log, work.sums, work.gradients, args.dh_last.data<float>(),
                     args.dh0.data<float>(), nullptr);
    const BackwardTensors<T> tensors{.in = in,
                                     .skip = args.skip.data<float>(),
                                     .states = work.states,
                                     .gradients = work.gradients,
                                     .dx = args.dx.data<T>(),
                                     .ddt = args.ddt.data<T>(),
                                     .dz = args.dz.data<T>(),
                                     .dskip = work.dskip,
                                     .ddt_bias = work.ddt_bias,
                                     .slabs = work.slabs};
    const dim3 grid(static_cast<unsigned>(plan.slabs), static_cast<unsigned>(plan.chunks),
                    static_cast<unsigned>(plan.batch));
    DispatchWarps(plan.states, [&](auto warps) {
      constexpr size_t kShared = sizeof(BackwardShared<warps()>);
      AllowSharedMemory(BackwardKernel<T, warps()>, kShared);
      Launch(name, BackwardKernel<T, warps()>, grid, dim3(32 * warps()), kShared, plan, tensors);
    });
    const int64_t count = plan.slab_size();
    Launch(name, AddSlabsKernel<T>, dim3(Pieces(count, 256)), dim3(256), 0, count, plan.slabs,
           2 * plan.states, work.slabs, in.row, args.dbc.data<T>());
    const int64_t chunks = int64_t{plan.batch} * plan.chunks;
    AddRowSumCuda(name, work.states, chunks, plan.state_size(), plan.state_size(),
                  args.da_log.data<float>(), RateOf{in.a_log});
    AddRowSumCuda(name, work.dskip, chunks, plan.channels, plan.channels, args.dskip.data<float>(),
                  One{});
    AddRowSumCuda(name, work.ddt_bias, chunks, plan.channels, plan.channels,
                  args.ddt_bias.data<float>(), One{});
  });
}

}  // namespace eyrie
