// The sLSTM on the GPU: which body takes it through time, and what its backward pass computes for
// all tokens at once. For bfloat16 on GPUs with thread-block clusters, heads of up to 512 units
// that divide by 8 go to the persistent kernels, all others to the plain ones.
#include "core/blas.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/slstm/slstm_cuda.h"
#include "kernels/slstm/slstm_kernels.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

template <class Args>
SlstmSizes SizesOf(const Args& args) {
  return {static_cast<int>(args.x.dim(0)), static_cast<int>(args.x.dim(1)),
          static_cast<int>(args.x.dim(2)), static_cast<int>(args.x.dim(4))};
}

// A single token is not worth bringing r into registers.
template <class View>
bool UsesCluster(const View& view) {
  return view.sizes.tokens > 1 && SlstmFitsCluster(view);
}

// Where the backward pass keeps what in its workspace, in float32 elements.
struct BackwardWorkspace {
  explicit BackwardWorkspace(const Tensor& x)
      : cells(x.size() / 4),
        slope(4 * cells),
        c(slope + cells),
        n(c + cells),
        carry(n + cells),
        entering(carry + 2 * x.dim(0) * x.dim(2) * x.dim(4)),
        total(entering + cells) {}
  int64_t cells;        // B T H d
  int64_t slope, c, n;  // [B, T, H, d], after the gates [B, T, H, 4, d]
  int64_t carry;        // [2, B, H, d]
  int64_t entering;     // [B, T, H, d] in the activations' type
  int64_t total;
};

// entering = y before each token, [B, T, H d], vectors of kWidth.
template <class T, int kWidth>
__global__ void __launch_bounds__(256)
    EnteringKernel(const T* __restrict__ y, const float* __restrict__ before,
                   const int32_t* __restrict__ positions, T* __restrict__ entering, int tokens,
                   int width) {
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * 256 + threadIdx.x) * kWidth;
  if (column >= width) return;
  Vector<T, kWidth> values{};
  if (positions[row] != 0) {
    if (row % tokens > 0) {
      values = LoadVector<kWidth>(y + (row - 1) * width + column);
    } else if (before != nullptr) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values.Set(i, before[row / tokens * width + column + i]);
      }
    }
  }
  StoreVector(entering + row * width + column, values);
}

// Takes each cell through time: the sums y_{t-1} r in `gates` become the gates, and slope, c and n
// are written, as SlstmBackwardView has them. A thread has one cell of one sequence, and loads some
// tokens ahead.
template <class T>
__global__ void __launch_bounds__(64)
    GatesKernel(const T* __restrict__ x, const float* __restrict__ bias,
                const int32_t* __restrict__ positions, SlstmSizes sizes, bool exponential_forget,
                SlstmStateView before, float* gates, float* __restrict__ slope,
                float* __restrict__ c, float* __restrict__ n) {
  constexpr int kAhead = 4;
  const int unit = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (unit >= sizes.units) return;
  float biases[4];
#pragma unroll
  for (int g = 0; g < 4; ++g) biases[g] = bias[(h * 4 + g) * sizes.units + unit];
  SlstmCell cell{};
  if (before.c != nullptr) {
    const int64_t at = sizes.StateAt(b, h, unit);
    cell = {before.c[at], before.n[at], before.m[at]};
  }

  float sums[kAhead][4];
  T inputs[kAhead][4];
  const auto load = [&](int t, int slot) {
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const int64_t at = sizes.GateAt(b, t, h, g, unit);
      sums[slot][g] = gates[at];
      inputs[slot][g] = x[at];
    }
  };
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    if (k < sizes.tokens) load(k, k);
  }
  for (int begin = 0; begin < sizes.tokens; begin += kAhead) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int t = begin + k;
      if (t >= sizes.tokens) break;
      float p[4];
#pragma unroll
      for (int g = 0; g < 4; ++g) p[g] = sums[k][g] + ToFloat(inputs[k][g]) + biases[g];
      if (t + kAhead < sizes.tokens) load(t + kAhead, k);
      if (positions[int64_t{b} * sizes.tokens + t] == 0) cell = {};
      const SlstmGates fed = SlstmStep(exponential_forget, p, cell);
      const int64_t at = sizes.At(b, t, h, unit);
      gates[sizes.GateAt(b, t, h, 0, unit)] = fed.i;
      gates[sizes.GateAt(b, t, h, 1, unit)] = fed.f;
      gates[sizes.GateAt(b, t, h, 2, unit)] = fed.z;
      gates[sizes.GateAt(b, t, h, 3, unit)] = fed.o;
      slope[at] = exponential_forget ? 1.0f : Sigmoid(-p[1]);
      c[at] = cell.c;
      n[at] = cell.n;
    }
  }
}

template <class T>
void ComputeEntering(const SlstmBackwardArgs& args, const Tensor& entering) {
  const int64_t tokens = args.x.dim(1), rows = args.x.dim(0) * tokens;
  const int64_t width = args.x.dim(2) * args.x.dim(4);
  const auto launch = [&](auto kernel, int each) {
    Launch("SlstmBackward", kernel, dim3(static_cast<unsigned>(rows), Pieces(width, 256 * each)),
           dim3(256), 0, args.y.data<T>(), args.before.y.data<float>(),
           args.positions.data<int32_t>(), entering.data<T>(), static_cast<int>(tokens),
           static_cast<int>(width));
  };
  constexpr int kWidth = kVectorWidth<T>;
  AllFitVectors<T>(width, {args.y.data<T>(), entering.data<T>()})
      ? launch(EnteringKernel<T, kWidth>, kWidth)
      : launch(EnteringKernel<T, 1>, 1);
}

}  // namespace

int64_t SlstmForwardWorkspaceCuda(const Tensor& x) { return 3 * x.dim(0) * x.dim(2) * x.dim(4); }

void SlstmForwardCuda(const SlstmForwardArgs& args) {
  DispatchCuda("SlstmForward", args.x, [&]<class T>(T) {
    const SlstmForwardView<T> view{.sizes = SizesOf(args),
                                   .x = args.x.data<T>(),
                                   .r = args.r.data<T>(),
                                   .bias = args.bias.data<float>(),
                                   .positions = args.positions.data<int32_t>(),
                                   .exponential_forget = args.exponential_forget,
                                   .before = SlstmStateView(args.before),
                                   .after = SlstmStateView(args.after),
                                   .y = args.y.data<T>(),
                                   .cells = args.workspace.data<float>()};
    if constexpr (std::is_same_v<T, Bf16>) {
      if (UsesCluster(view)) return SlstmForwardCluster(view);
    }
    SlstmForwardPlain(view);
  });
}

int64_t SlstmBackwardWorkspaceCuda(const Tensor& x) {
  const Tensor dx = x.View({x.dim(0) * x.dim(1), x.size() / (x.dim(0) * x.dim(1))});
  return std::max(BackwardWorkspace(x).total, SumRowsWorkspace(dx));
}

void SlstmBackwardCuda(const SlstmBackwardArgs& args) {
  const char* kernel = "SlstmBackward";
  const SlstmSizes sizes = SizesOf(args);
  const int64_t rows = int64_t{sizes.batch} * sizes.tokens, heads = sizes.heads;
  const int64_t units = sizes.units, wide = 4 * units;
  const BackwardWorkspace at(args.x);
  float* workspace = args.workspace.data<float>();
  const Tensor gates{workspace, DType::kF32, Device::kCuda, args.x.shape};
  const Tensor entering{workspace + at.entering, args.x.dtype, Device::kCuda, args.y.shape};
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    ComputeEntering<T>(args, entering);
    Gemm({.m = rows,
          .n = wide,
          .k = units,
          .a = entering,
          .lda = heads * units,
          .b = args.r,
          .ldb = wide,
          .c = gates,
          .ldc = heads * wide,
          .batch = heads,
          .stride_a = units,
          .stride_b = units * wide,
          .stride_c = wide});
    Launch(
        kernel, GatesKernel<T>,
        dim3(Pieces(units, 64), static_cast<unsigned>(heads), static_cast<unsigned>(sizes.batch)),
        dim3(64), 0, args.x.data<T>(), args.bias.data<float>(), args.positions.data<int32_t>(),
        sizes, args.exponential_forget, SlstmStateView(args.before), workspace,
        workspace + at.slope, workspace + at.c, workspace + at.n);
    const SlstmBackwardView<T> view{.sizes = sizes,
                                    .r = args.r.data<T>(),
                                    .positions = args.positions.data<int32_t>(),
                                    .before = SlstmStateView(args.before),
                                    .dafter = SlstmStateView(args.dafter),
                                    .dbefore = SlstmStateView(args.dbefore),
                                    .gates = workspace,
                                    .slope = workspace + at.slope,
                                    .c = workspace + at.c,
                                    .n = workspace + at.n,
                                    .dy = args.dy.data<T>(),
                                    .dx = args.dx.data<T>(),
                                    .carry = workspace + at.carry};
    bool clustered = false;
    if constexpr (std::is_same_v<T, Bf16>) {
      clustered = UsesCluster(view);
      if (clustered) SlstmBackwardCluster(view);
    }
    if (!clustered) SlstmBackwardPlain(view);
  });
  Gemm({.trans_a = Trans::kYes,
        .m = units,
        .n = wide,
        .k = rows,
        .a = entering,
        .lda = heads * units,
        .b = args.dx,
        .ldb = heads * wide,
        .c = args.dr,
        .ldc = wide,
        .accumulate = true,
        .batch = heads,
        .stride_a = units,
        .stride_b = wide,
        .stride_c = units * wide});
  // The gates are no longer needed.
  SumRows(args.dx.View({rows, heads * wide}), args.dbias.View({heads * wide}), args.workspace);
}

}  // namespace eyrie
