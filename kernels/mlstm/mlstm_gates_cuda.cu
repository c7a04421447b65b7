#include "core/early_launch.cuh"
#include "kernels/cuda_math.cuh"
#include "kernels/mlstm/mlstm_gates_cuda.h"

namespace eyrie {
namespace {

// One of the two gates: the kernels' last grid axis picks it.
template <class T>
struct ForwardGate {
  const T* x;
  const float* bias;
  float* log;
  bool sigmoid;
};
template <class T>
struct ForwardGates {
  ForwardGate<T> gates[2];
};
template <class T>
struct BackwardGate {
  const T* x;
  const float *bias, *dlog;
  T* dx;
  float* dbias;
  bool sigmoid;
};
template <class T>
struct BackwardGates {
  BackwardGate<T> gates[2];
};

constexpr int kForwardThreads = 256, kBackwardThreads = 1024;

template <class T>
__global__ void __launch_bounds__(kForwardThreads)
    GatesForwardKernel(const ForwardGates<T> both, int64_t count, int64_t heads, float cap) {
  AwaitEarlier();
  const ForwardGate<T> gate = both.gates[blockIdx.y];
  const int64_t i = int64_t{blockIdx.x} * kForwardThreads + threadIdx.x;
  if (i >= count) return;
  float y = ToFloat(gate.x[i]) + gate.bias[i % heads];
  if (cap > 0) y = cap * tanhf(y / cap);
  gate.log[i] = gate.sigmoid ? -Softplus(-y) : y;
}

// A block takes one head, so that it adds up all of the bias's gradient; the rest of each line of
// memory it reads is read by its neighbours at about the same time, from the cache.
template <class T>
__global__ void __launch_bounds__(kBackwardThreads)
    GatesBackwardKernel(const BackwardGates<T> both, int64_t rows, int64_t heads, float cap) {
  AwaitEarlier();
  __shared__ float shared[32];
  const BackwardGate<T> gate = both.gates[blockIdx.y];
  const int64_t head = blockIdx.x;
  const float bias = gate.bias[head];
  float sum = 0;
#pragma unroll 8
  for (int64_t row = threadIdx.x; row < rows; row += kBackwardThreads) {
    const int64_t i = row * heads + head;
    float y = ToFloat(gate.x[i]) + bias, gradient = gate.dlog[i];
    if (cap > 0) {
      const float share = tanhf(y / cap);
      y = cap * share;
      gradient *= 1 - share * share;
    }
    if (gate.sigmoid) gradient *= Sigmoid(-y);
    gate.dx[i] = FromFloat<T>(gradient);
    sum += gradient;
  }
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) gate.dbias[head] += sum;
}

}  // namespace

void MlstmGatesForwardCuda(const MlstmGatesForwardArgs& args) {
  const char* kernel = "MlstmGatesForward";
  const int64_t count = args.i.size();
  if (count == 0) return;
  DispatchCuda(kernel, args.i, [&]<class T>(T) {
    const auto gate = [](const Tensor& x, const Tensor& bias, MlstmGate kind, const Tensor& log) {
      return ForwardGate<T>{x.data<T>(), bias.data<float>(), log.data<float>(),
                            kind == MlstmGate::kSigmoid};
    };
    const ForwardGates<T> both{{gate(args.i, args.bias_i, args.input, args.log_i),
                                gate(args.f, args.bias_f, args.forget, args.log_f)}};
    LaunchEarly(kernel, GatesForwardKernel<T>, dim3(Pieces(count, kForwardThreads), 2),
                kForwardThreads, 0, both, count, args.bias_i.size(),
                static_cast<float>(args.soft_cap));
  });
}

void MlstmGatesBackwardCuda(const MlstmGatesBackwardArgs& args) {
  const char* kernel = "MlstmGatesBackward";
  const int64_t heads = args.bias_i.size(), rows = args.i.size() / heads;
  if (rows == 0) return;
  DispatchCuda(kernel, args.i, [&]<class T>(T) {
    const auto gate = [](const Tensor& x, const Tensor& bias, MlstmGate kind, const Tensor& dlog,
                         const Tensor& dx, const Tensor& dbias) {
      return BackwardGate<T>{x.data<T>(),  bias.data<float>(),  dlog.data<float>(),
                             dx.data<T>(), dbias.data<float>(), kind == MlstmGate::kSigmoid};
    };
    const BackwardGates<T> both{
        {gate(args.i, args.bias_i, args.input, args.dlog_i, args.di, args.dbias_i),
         gate(args.f, args.bias_f, args.forget, args.dlog_f, args.df, args.dbias_f)}};
    LaunchEarly(kernel, GatesBackwardKernel<T>, dim3(static_cast<unsigned>(heads), 2),
                kBackwardThreads, 0, both, rows, heads, static_cast<float>(args.soft_cap));
  });
}

}  // namespace eyrie
