// CUDA body of the selective scan's backward pass. B sequences, T tokens, E channels, N states.
//
// Time is cut into chunks of 64 tokens. MapsKernel finds the chunks' maps both ways and LinkKernel
// links them (selective_scan.cuh); then BackwardKernel goes back through all chunks at once. In
// both, each warp takes one chunk and one group of channels after another
// (selective_scan_group.cuh). A decay is computed once for the maps and twice after them; what else
// a state and token cost, about 20 instructions of the float32 units in the main loop, bounds the
// pass together with the special function unit. There are few warps on a processor, for their
// registers, but each has eight independent recurrences in every lane.
//
// Gradients of B and C are sums over channels: first over a warp's (channel_sum.cuh), then, group
// after group, in shared memory, then over a block's warps, and last over the blocks that take
// other groups. All sums are made in an order that depends on shapes alone, and on a block's warps.
#include "kernels/row_sum.cuh"
#include "kernels/selective_scan/selective_scan_cuda.h"
#include "kernels/selective_scan/selective_scan_group.cuh"

namespace eyrie {
namespace selective_scan {
namespace {

template <int kSplit, int kWarps, class Warp>
struct BackwardShared {
  alignas(16) BcShared<kSplit> bc;
  Warp warps[kWarps];
};

// Loads B and C of the block's chunk, then calls body(group, starts) for each group of channels of
// this warp; `starts` has a bit for each token of the chunk that starts a document.
template <int kSplit, int kWarps, class T, class Body>
__device__ __forceinline__ void ForGroups(const BackwardPlan& plan, const Inputs<T>& in,
                                          BcShared<kSplit>& to, const Body& body) {
  const int warp = static_cast<int>(threadIdx.x) / 32, b = blockIdx.z;
  const int begin = blockIdx.y * kChunk, end = min(plan.time, begin + kChunk);
  BcTile<T, kSplit * kLaneStates, 32 * kWarps, kChunk> bc;
  bc.Load(plan, in, b, begin, end);
  bc.Store(to);
  const uint64_t early = Starts(LoadPosition(plan, b, in.positions, begin, min(32, end - begin)));
  const uint64_t late = Starts(LoadPosition(plan, b, in.positions, begin + 32, end - begin - 32));
  __syncthreads();
  for (int group = blockIdx.x * kWarps + warp; group < plan.groups; group += plan.slabs * kWarps) {
    body(group, late << 32 | early);
  }
}

template <class T, int kSplit, int kWarps>
using MapsShared = BackwardShared<kSplit, kWarps, TokensShared<T, kSplit>>;

template <class T, int kSplit, int kVector, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 4)
    MapsKernel(const BackwardPlan plan, const ChunkTensors<T> tensors) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<MapsShared<T, kSplit, kWarps>*>(memory);
  auto& own = shared.warps[threadIdx.x / 32];
  ForGroups<kSplit, kWarps>(plan, tensors.in, shared.bc, [&](int group, uint64_t starts) {
    GroupMaps<T, kSplit, kVector>(plan, tensors.in, shared.bc, own, blockIdx.z, blockIdx.y, group)
        .Run(starts, tensors);
  });
}

template <class T, int kSplit, int kWarps>
using BlockShared = BackwardShared<kSplit, kWarps, GradientsShared<T, kSplit>>;

template <class T, int kSplit, int kVector, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 2)
    BackwardKernel(const BackwardPlan plan, const BackwardTensors<T> tensors) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BlockShared<T, kSplit, kWarps>*>(memory);
  using Sum = typename GradientsShared<T, kSplit>::Sum;
  auto& own = shared.warps[threadIdx.x / 32];
  constexpr int kSums = sizeof(own.dbc) / sizeof(float);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) % 32; i < kSums; i += 32) {
    (&own.dbc[0][0][0][0][0])[i] = 0;
  }
  const int slab = blockIdx.x, chunk = blockIdx.y, b = blockIdx.z;
  ForGroups<kSplit, kWarps>(plan, tensors.in, shared.bc, [&](int group, uint64_t starts) {
    GroupGradients<T, kSplit, kVector>(plan, tensors, shared.bc, own, b, chunk, group).Run(starts);
  });
  __syncthreads();
  // Rows of a slab hold dB_t and dC_t.
  const int pair = 2 * plan.states;
  const int begin = chunk * kChunk, end = min(plan.time, begin + kChunk);
  float* to = tensors.slabs + slab * plan.slab_size() + (int64_t{b} * plan.time + begin) * pair;
  for (int i = static_cast<int>(threadIdx.x); i < (end - begin) * pair; i += 32 * kWarps) {
    const int token = i / pair, j = i % pair, run = token / kRun;
    const bool is_c = j >= plan.states;
    const auto place = Sum::Find(token % 2 == 1, is_c ? j - plan.states : j);
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += shared.warps[w].dbc[run][is_c ? 1 : 0][place.index][place.lane][token % kRun / 2];
    }
    to[i] = sum;
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
    const dim3 grid(static_cast<unsigned>(plan.slabs), static_cast<unsigned>(plan.chunks),
                    static_cast<unsigned>(plan.batch));
    // Calls body with N / 8 and the vectors' width as integral constants.
    const auto dispatch = [&](const auto& body) {
      const bool vectors = AllFitVectors<T>(
          plan.channels,
          {in.x, in.dt, in.z, in.dout, args.dx.data<T>(), args.ddt.data<T>(), args.dz.data<T>()});
      DispatchWarps(plan.states, [&](auto warps) {
        constexpr int kSplit = warps() * kThreadStates / kLaneStates;
        constexpr int kVector = std::min(kVectorWidth<T>, 32 / kSplit);
        if (vectors) {
          body(std::integral_constant<int, kSplit>{}, std::integral_constant<int, kVector>{});
        } else {
          body(std::integral_constant<int, kSplit>{}, std::integral_constant<int, 1>{});
        }
      });
    };
    const auto launch = [&](auto kernel, int warps, size_t bytes, const auto& tensors) {
      AllowSharedMemory(kernel, bytes);
      Launch(name, kernel, grid, dim3(32 * warps), bytes, plan, tensors);
    };
    constexpr int kWarps = BackwardPlan::kWarps;
    const ChunkTensors<T> maps{in, work.sums, work.states, work.gradients};
    dispatch([&](auto split, auto vector) {
      launch(MapsKernel<T, split(), vector(), kWarps>, kWarps,
             sizeof(MapsShared<T, split(), kWarps>), maps);
    });
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
    dispatch([&](auto split, auto vector) {
      const auto launch_warps = [&]<int kBlock>(std::integral_constant<int, kBlock>) {
        launch(BackwardKernel<T, split(), vector(), kBlock>, kBlock,
               sizeof(BlockShared<T, split(), kBlock>), tensors);
      };
      // For some numbers of states an A100 has room for half as many warps.
      constexpr size_t kWhole = sizeof(BlockShared<T, split(), kWarps>);
      if constexpr (kWhole > kA100SharedMemory) {
        static_assert(sizeof(BlockShared<T, split(), kWarps / 2>) <= kA100SharedMemory);
        if (kWhole > MostSharedMemory()) {
          return launch_warps(std::integral_constant<int, kWarps / 2>{});
        }
      }
      launch_warps(std::integral_constant<int, kWarps>{});
    });
    const int64_t count = plan.slab_size();
    Launch(name, AddSlabsKernel<T>, dim3(Pieces(count, 256)), dim3(256), 0, count, plan.slabs,
           2 * plan.states, work.slabs, in.row, args.dbc.data<T>());
    const int64_t chunks = int64_t{plan.batch} * plan.chunks;
    AddRowSumCuda(name, work.states, chunks, plan.state_size(), args.da_log.data<float>(),
                  RateOf{in.a_log});
    AddRowSumCuda(name, work.dskip, chunks, plan.channels, args.dskip.data<float>(), One{});
    AddRowSumCuda(name, work.ddt_bias, chunks, plan.channels, args.ddt_bias.data<float>(), One{});
  });
}

}  // namespace eyrie
