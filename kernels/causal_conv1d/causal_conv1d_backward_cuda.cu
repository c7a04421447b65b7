// The convolution's gradients (causal_conv1d_rows.cuh). Registers have no room for rows that are on
// their way: each thread's come through shared memory, some steps ahead.
#include "kernels/async_copy.cuh"
#include "kernels/causal_conv1d/causal_conv1d_rows.cuh"
#include "kernels/row_sum.cuh"

namespace eyrie {
namespace causal_conv1d {
namespace {

constexpr int kBackwardTokens = 4;  // that a thread takes at once

template <class T>
struct BackwardTensors {
  const T *x, *weight, *bias;  // the bias with SiLU only
  const int* positions;
  const T *x0, *dy, *dx_last;
  T *dx, *dx0;
  float* shares;  // [B, blocks along time, K + 2, C]: of a block, of [dweight; dbias; dx_sum]
};

// A span's share of the gradients that are sums over tokens.
template <int kTaps, int N>
struct SummedGrads {
  float weights[kTaps][N] = {};  // [s] of the token s back
  float bias[N] = {};
  float x[N] = {};  // of dx
};

// Adds to `dx` what row j receives from x_last, which holds rows [T-K+1, T).
template <class T, int N>
__device__ __forceinline__ void AddHandedOn(const Sizes& sizes, const T* dx_last, int64_t b,
                                            int64_t c, int j, float (&dx)[N]) {
  const int history = sizes.taps - 1;
  const int k = j - (sizes.time - history);
  if (dx_last == nullptr || k < 0) return;
  const auto row = LoadVector<N>(dx_last + (b * history + k) * sizes.channels + c);
  for (int v = 0; v < N; ++v) dx[v] += row[v];
}

// Turns the gradients of the outputs of kCount tokens into those of their sums, under SiLU. `x`
// begins with the kTaps - 1 rows before the first of them, and `live` with its own.
template <int kCount, bool kAll, class T, int kTaps, int N>
__device__ __forceinline__ void BackThroughSilu(const float (&weights)[kTaps][N],
                                                const Vector<T, N>& bias, const Vector<T, N>* x,
                                                const int* live, Vector<float, N>* dy) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float sum[N];
    for (int v = 0; v < N; ++v) sum[v] = bias[v];
#pragma unroll
    for (int s = 0; s < kTaps; ++s) {
      if (!kAll && s > live[i]) continue;
      for (int v = 0; v < N; ++v) sum[v] = fmaf(weights[s][v], x[kTaps - 1 + i - s][v], sum[v]);
    }
    for (int v = 0; v < N; ++v) {
      const float sigmoid = Sigmoid(sum[v]);
      dy[i].Set(v, dy[i][v] * sigmoid * (1.0f + sum[v] * (1.0f - sigmoid)));
    }
  }
}

// The rows of x and dy that steps of kBackwardTokens tokens take, on their way: some steps' in
// shared memory, where a thread finds what it copied itself; or, if they are too narrow to be
// copied, nowhere until they are taken.
template <class T, int N>
class RowsAhead {
 public:
  static constexpr bool kCopied = sizeof(Vector<T, N>) >= 8;
  static constexpr int kStages = sizeof(T) == 2 ? 3 : 2;
  static constexpr int kOfStep = 2 * kBackwardTokens, kThreads = kLanes * kWalkers;
  static constexpr size_t kBytes =
      kCopied ? kStages * kOfStep * kThreads * sizeof(Vector<T, N>) : 0;

  __device__ RowsAhead(const ThreadRows<T, N>& x, const ThreadRows<T, N>& dy, unsigned char* memory)
      : x_(x),
        dy_(dy),
        own_(reinterpret_cast<Vector<T, N>*>(memory) + threadIdx.y * kLanes + threadIdx.x) {}

  // Starts on the rows of the next step, from x_row and dy_row on, or on none.
  __device__ __forceinline__ void Start(bool any, int x_row, int dy_row) {
    if constexpr (kCopied) {
      if (any) {
        const auto copy = [&](int first) {
          return [this, first](int i, const T* row) {
            CopyAsync<sizeof(Vector<T, N>)>(SharedAddress(Slot(started_, first + i)), row, true);
          };
        };
        x_.template ForRows<kBackwardTokens>(x_row, copy(0));
        dy_.template ForRows<kBackwardTokens>(dy_row, copy(kBackwardTokens));
      }
      CommitCopies();
      started_ = started_ + 1 == kStages ? 0 : started_ + 1;
    }
  }
  // Takes those of the step after the last one taken. kStages - 1 steps must be under way.
  __device__ __forceinline__ void Take(int x_row, int dy_row, Vector<T, N>* x, Vector<T, N>* dy) {
    if constexpr (kCopied) {
      WaitForCopyGroups<kStages - 2>();
#pragma unroll
      for (int i = 0; i < kBackwardTokens; ++i) {
        x[i] = *Slot(taken_, i);
        dy[i] = *Slot(taken_, kBackwardTokens + i);
      }
      taken_ = taken_ + 1 == kStages ? 0 : taken_ + 1;
    } else {
      x_.template Load<kBackwardTokens>(x_row, x);
      dy_.template Load<kBackwardTokens>(dy_row, dy);
    }
  }

 private:
  __device__ __forceinline__ Vector<T, N>* Slot(int stage, int i) const {
    return own_ + (stage * kOfStep + i) * kThreads;
  }

  const ThreadRows<T, N>&x_, &dy_;
  Vector<T, N>* own_;
  int started_ = 0, taken_ = 0;  // modulo kStages
};

// Takes tokens [first, end) back: writes their dx, and that of the state before token 0. `live[0]`
// is that of token `first`. With SiLU, rows of x and gradients run kTaps - 1 tokens ahead, whose
// sums' gradients reach back to the tokens at hand.
template <bool kSilu, class T, int kTaps, int N>
__device__ __forceinline__ void WalkBack(const Sizes& sizes, const BackwardTensors<T>& tensors,
                                         int64_t b, int64_t c, int first, int end, const int* live,
                                         unsigned char* memory, SummedGrads<kTaps, N>& grads) {
  constexpr int kHalo = kTaps - 1, kAhead = kSilu ? kHalo : 0;
  const int64_t channels = sizes.channels;
  const T* no_state = nullptr;
  const ThreadRows<T, N> x_rows(sizes, tensors.x, tensors.x0, b, c);
  const ThreadRows<T, N> dy_rows(sizes, tensors.dy, no_state, b, c);
  // What the step at token t takes.
  const auto ahead = [&](int t) { return min(t + kHalo, sizes.time - 1); };
  const auto x_row = [&](int t) { return kSilu ? ahead(t) : t; };
  RowsAhead<T, N> rows_ahead(x_rows, dy_rows, memory);
  const auto start = [&](int t) { rows_ahead.Start(t < end, x_row(t), ahead(t)); };
  constexpr int kStepsAhead = RowsAhead<T, N>::kStages - 1;
  for (int i = 0; i < kStepsAhead; ++i) start(first + i * kBackwardTokens);
  float weights[kTaps][N];
  LoadWeights(sizes, tensors.weight, c, weights);
  // Of the sums; they keep full precision where they were not read.
  using Gradient = Vector<std::conditional_t<kSilu, float, T>, N>;
  const auto gradient = [](const Vector<T, N>& row) {
    if constexpr (kSilu) {
      Gradient wide;
      for (int v = 0; v < N; ++v) wide.Set(v, row[v]);
      return wide;
    } else {
      return row;
    }
  };
  Vector<T, N> x[kHalo + kBackwardTokens + kAhead];  // from token t - kHalo on
  Gradient dy[kBackwardTokens + kHalo];              // from token t on
  Vector<T, N> bias;
#pragma unroll
  for (int i = 0; i < kHalo + kAhead; ++i) x[i] = x_rows[first - kHalo + i];
#pragma unroll
  for (int i = 0; i < kHalo; ++i) dy[i] = gradient(dy_rows.Token(first + i));
  if constexpr (kSilu) {
    bias = LoadVector<N>(tensors.bias + c);
    BackThroughSilu<kHalo, false>(weights, bias, x, live, dy);
  }

  const int history = sizes.taps - 1;
  if (first == 0 && tensors.dx0 != nullptr) {
#pragma unroll
    for (int j = -kHalo; j < 0; ++j) {
      if (j < -history) continue;
      float dx[N] = {};
#pragma unroll
      for (int s = 1; s < kTaps; ++s) {
        if (j + s < 0 || s > live[j + s]) continue;
        for (int v = 0; v < N; ++v) dx[v] = fmaf(weights[s][v], dy[j + s][v], dx[v]);
      }
      AddHandedOn(sizes, tensors.dx_last, b, c, j, dx);
      StoreVector(tensors.dx0 + (b * history + history + j) * channels + c, Rounded<T>(dx));
    }
  }

  T* out = tensors.dx + (b * sizes.time + first) * channels + c;
#pragma unroll 1
  for (int t = first; t < end; t += kBackwardTokens) {
    Vector<T, N> rows[kBackwardTokens];
    rows_ahead.Take(x_row(t), ahead(t), x + kHalo + kAhead, rows);
    start(t + kStepsAhead * kBackwardTokens);
#pragma unroll
    for (int i = 0; i < kBackwardTokens; ++i) dy[kHalo + i] = gradient(rows[i]);
    // Tokens that see all of theirs, and are seen by all of theirs. The last ones are not.
    WithConstant(AllEqual<kBackwardTokens + kHalo>(live, kHalo), [&](auto constant) {
      constexpr bool kAll = decltype(constant)::value;
      if constexpr (kSilu) {
        BackThroughSilu<kBackwardTokens, kAll>(weights, bias, x + kHalo, live + kHalo, dy + kHalo);
      }
#pragma unroll
      for (int i = 0; i < kBackwardTokens; ++i, out += channels) {
        if (!kAll && live[i] < 0) continue;
        float dx[N] = {};
#pragma unroll
        for (int s = 0; s < kTaps; ++s) {
          const bool sees = kAll || s <= live[i], seen = kAll || s <= live[i + s];
          for (int v = 0; v < N; ++v) {
            if (seen) dx[v] = fmaf(weights[s][v], dy[i + s][v], dx[v]);
            if (sees) {
              grads.weights[s][v] = fmaf(x[kHalo + i - s][v], dy[i][v], grads.weights[s][v]);
            }
          }
        }
        for (int v = 0; v < N; ++v) grads.bias[v] += dy[i][v];
        if (!kAll) AddHandedOn(sizes, tensors.dx_last, b, c, t + i, dx);
        for (int v = 0; v < N; ++v) grads.x[v] += dx[v];
        StoreVector(out, Rounded<T>(dx));
      }
    });
    live += kBackwardTokens;
#pragma unroll
    for (int i = 0; i < kHalo + kAhead; ++i) x[i] = x[kBackwardTokens + i];
#pragma unroll
    for (int i = 0; i < kHalo; ++i) dy[i] = dy[kBackwardTokens + i];
  }
}

template <class T, int kTaps, int N, bool kSilu>
__global__ void __launch_bounds__(kLanes* kWalkers, kTaps == 4 && sizeof(T) == 2 ? 2 : 1)
    BackwardKernel(Sizes sizes, BackwardTensors<T> tensors) {
  AwaitEarlier();
  constexpr int kSums = (kTaps + 2) * N;
  __shared__ int live[kWalkers * kLongestSpan + kTaps - 1];
  __shared__ float sums[kWalkers][kSums][kLanes];
  extern __shared__ __align__(16) unsigned char memory[];
  const int64_t b = blockIdx.z, channels = sizes.channels;
  const int block_first = blockIdx.y * kWalkers * sizes.span;
  LoadLive(sizes, tensors.positions, b, block_first, kWalkers * sizes.span + kTaps - 1, live);
  const int64_t c = (int64_t{blockIdx.x} * kLanes + threadIdx.x) * N;
  const int first = block_first + threadIdx.y * sizes.span;

  SummedGrads<kTaps, N> grads;
  if (c < channels && first < sizes.time) {
    WalkBack<kSilu, T, kTaps, N>(sizes, tensors, b, c, first, min(first + sizes.span, sizes.time),
                                 live + threadIdx.y * sizes.span, memory, grads);
  }
  // Row s of the sums is of the token s back, the last two are of the bias and of dx.
#pragma unroll
  for (int v = 0; v < N; ++v) {
#pragma unroll
    for (int s = 0; s < kTaps; ++s) sums[threadIdx.y][s * N + v][threadIdx.x] = grads.weights[s][v];
    sums[threadIdx.y][kTaps * N + v][threadIdx.x] = grads.bias[v];
    sums[threadIdx.y][(kTaps + 1) * N + v][threadIdx.x] = grads.x[v];
  }
  __syncthreads();
  if (c >= channels) return;
  float* share = tensors.shares + (b * gridDim.y + blockIdx.y) * (sizes.taps + 2) * channels + c;
  for (int i = threadIdx.y; i < kSums; i += kWalkers) {
    const int s = i / N, v = i % N;
    if (s >= sizes.taps && s < kTaps) continue;
    float sum = 0;
    for (int walker = 0; walker < kWalkers; ++walker) sum += sums[walker][i][threadIdx.x];
    const int row = s < kTaps ? sizes.taps - 1 - s : sizes.taps + s - kTaps;
    share[row * channels + v] = sum;
  }
}

// Adds the blocks' sums to the gradients that they are; `i` counts the elements of one share.
struct AddShares {
  __device__ void operator()(int64_t i, float sum) const {
    if (i < weights) {
      dweight[i] += sum;
    } else if (const int64_t c = i - weights; c < channels) {
      dbias[c] += sum;
    } else if (dx_sum != nullptr) {
      dx_sum[c - channels] += sum;
    }
  }
  int64_t weights, channels;  // elements of dweight, and of each other
  float *dweight, *dbias, *dx_sum;
};

}  // namespace
}  // namespace causal_conv1d

void CausalConv1dBackwardCuda(const CausalConv1dBackwardArgs& args) {
  using namespace causal_conv1d;
  const Sizes sizes = SizesOf(args.x, args.weight);
  float* shares = args.workspace.data<float>();
  DispatchCuda("CausalConv1dBackward", args.x, [&]<class T>(T) {
    const BackwardTensors<T> tensors{.x = args.x.data<T>(),
                                     .weight = args.weight.data<T>(),
                                     .bias = args.silu ? args.bias.data<T>() : nullptr,
                                     .positions = args.positions.data<int>(),
                                     .x0 = args.x0.data<T>(),
                                     .dy = args.dy.data<T>(),
                                     .dx_last = args.dx_last.data<T>(),
                                     .dx = args.dx.data<T>(),
                                     .dx0 = args.dx0.data<T>(),
                                     .shares = shares};
    const bool vectors =
        AllFitVectors<T>(sizes.channels, {tensors.x, tensors.weight, tensors.bias, tensors.x0,
                                          tensors.dy, tensors.dx_last, tensors.dx, tensors.dx0});
    DispatchWidth(sizes.taps, vectors, args.silu, [&](auto taps, auto width, auto silu) {
      const auto kernel = BackwardKernel<T, taps(), width(), silu()>;
      constexpr size_t kShared = RowsAhead<T, width()>::kBytes;
      AllowSharedMemory(kernel, kShared);
      LaunchSpans("CausalConv1dBackward", kernel, sizes, width(), kShared, tensors);
    });
  });
  const int64_t rows = sizes.batch * TimeBlocks(sizes.time, sizes.span);
  RowSumCuda("CausalConv1dBackward", shares, rows, (int64_t{sizes.taps} + 2) * sizes.channels,
             AddShares{.weights = int64_t{sizes.taps} * sizes.channels,
                       .channels = sizes.channels,
                       .dweight = args.dweight.data<float>(),
                       .dbias = args.dbias.data<float>(),
                       .dx_sum = args.dx_sum.data<float>()});
}

}  // namespace eyrie
