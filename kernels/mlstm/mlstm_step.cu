// The mLSTM for a single token: one pass over the state, which is all that takes time. The gates'
// factors and the normaliser come first, as all blocks of a head need them.
#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {
namespace {

// A block has 128 values of a head where rows are read in vectors of 4, else 32; each of its warps
// every eighth key.
constexpr int kWarps = 8, kThreads = 32 * kWarps;

enum Factor { kDecay, kInput, kOutput, kFactors = 4 };

template <class T>
__global__ void __launch_bounds__(kThreads)
    StepNormaliserKernel(const MlstmLayout sizes, const MlstmStep<T> step) {
  __shared__ float parts[32];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const bool starts = sizes.Document(head, 0) == 0;
  const float empty = static_cast<float>(kMlstmEmpty);
  const float log_f = step.log_f[head], log_i = step.log_i[head];
  float before = 0.0f, m = 0.0f;
  if (step.stabilised) {
    before = step.m != nullptr && !starts ? step.m[head] : empty;
    m = starts ? log_i : fmaxf(log_f + before, log_i);
  }
  const bool remembers = step.n != nullptr && !starts;
  const float decay = remembers ? expf(log_f + (before - m)) : 0.0f, input = expf(log_i - m);
  const float scale = rsqrtf(static_cast<float>(sizes.keys));
  float sum = 0.0f;
  for (int key = thread; key < sizes.keys; key += kThreads) {
    const int64_t at = static_cast<int64_t>(head) * sizes.keys + key;
    const float old = remembers ? decay * step.n[at] : 0.0f;
    const float n = fmaf(input, ToFloat(step.k[at]), old);
    if (step.n_after != nullptr) step.n_after[at] = n;
    sum = fmaf(n, ToFloat(step.q[at]), sum);
  }
  // After this all threads have read what may lie where the results go.
  const float normaliser = scale * BlockSum(sum, parts);
  if (thread != 0) return;
  const float b = fmaxf(fabsf(normaliser), expf(-m)) + step.epsilon;
  float* factors = step.factors + kFactors * static_cast<int64_t>(head);
  factors[kDecay] = decay;
  factors[kInput] = input;
  factors[kOutput] = step.normalised ? scale / b : scale;
  step.maximum[head] = m;
  step.normaliser[head] = normaliser;
  if (step.m_after != nullptr) step.m_after[head] = m;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    StepKernel(const MlstmLayout sizes, const MlstmStep<T> step) {
  __shared__ float q[kMaxMlstmCudaWidth], k[kMaxMlstmCudaWidth];
  __shared__ float sums[kWarps][32 * N];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int head = static_cast<int>(blockIdx.x);
  const int value = static_cast<int>(blockIdx.y) * 32 * N + lane * N;
  const float* factors = step.factors + kFactors * static_cast<int64_t>(head);
  const float decay = factors[kDecay], input = factors[kInput];
  const int64_t row = static_cast<int64_t>(head) * sizes.keys;
  for (int key = thread; key < sizes.keys; key += kThreads) {
    q[key] = ToFloat(step.q[row + key]);
    k[key] = ToFloat(step.k[row + key]) * input;
  }
  __syncthreads();
  float sum[N] = {}, v[N] = {};
  if (value < sizes.values) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      v[j] = ToFloat(step.v[static_cast<int64_t>(head) * sizes.values + value + j]);
    }
    const bool remembers = step.c != nullptr && decay != 0.0f;
#pragma unroll 8
    for (int key = warp; key < sizes.keys; key += kWarps) {
      const int64_t at = (row + key) * sizes.values + value;
      Vector<float, N> c{};
      if (remembers) c = LoadVector<N>(step.c + at);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        c.values[j] = fmaf(k[key], v[j], decay * c.values[j]);
        sum[j] = fmaf(q[key], c.values[j], sum[j]);
      }
      if (step.c_after != nullptr) StoreVector(step.c_after + at, c);
    }
  }
#pragma unroll
  for (int j = 0; j < N; ++j) sums[warp][lane * N + j] = sum[j];
  __syncthreads();
  const int mine = static_cast<int>(blockIdx.y) * 32 * N + thread;
  if (thread >= 32 * N || mine >= sizes.values) return;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += sums[i][thread];
  step.h[static_cast<int64_t>(head) * sizes.values + mine] = FromFloat<T>(total * factors[kOutput]);
}

}  // namespace

template <class T>
void MlstmStepCuda(const MlstmLayout& sizes, const MlstmStep<T>& step) {
  const auto heads = static_cast<unsigned>(sizes.all_heads());
  Launch("mlstm step", StepNormaliserKernel<T>, dim3(heads), dim3(kThreads), 0, sizes, step);
  const auto launch = [&](auto kernel, int values) {
    Launch("mlstm step", kernel, dim3(heads, Pieces(sizes.values, values)), dim3(kThreads), 0,
           sizes, step);
  };
  if (AllFitVectors<float>(sizes.values, {step.c, step.c_after})) {
    launch(StepKernel<T, 4>, 128);
  } else {
    launch(StepKernel<T, 1>, 32);
  }
}
template void MlstmStepCuda<float>(const MlstmLayout&, const MlstmStep<float>&);
template void MlstmStepCuda<__nv_bfloat16>(const MlstmLayout&, const MlstmStep<__nv_bfloat16>&);

}  // namespace eyrie
