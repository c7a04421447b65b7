// Cross-entropy on the GPU. N tokens, V columns of the vocabulary here. Every step is one pass over
// the float32 rows of [N, V], a block a row.
#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/cuda_elementwise.cuh"

namespace eyrie {
namespace {

constexpr int kThreads = 256, kWidth = 4;

// Calls body(j, vector) for the vectors of kWidth of a row that this thread takes, j the first
// column of each. Some are loaded together before the first is used.
template <int kRowWidth, class Body>
__device__ __forceinline__ void ForRow(const float* row, int64_t columns, const Body& body) {
  constexpr int kUnroll = kRowWidth == 1 ? 8 : 4;
  constexpr int64_t kStep = int64_t{kThreads} * kRowWidth;
  for (int64_t begin = threadIdx.x * kRowWidth; begin < columns; begin += kStep * kUnroll) {
    Vector<float, kRowWidth> values[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t j = begin + u * kStep;
      if (j < columns) values[u] = LoadVector<kRowWidth>(row + j);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t j = begin + u * kStep;
      if (j < columns) body(j, values[u]);
    }
  }
}

__device__ __forceinline__ float Capped(float u, float cap, float inverse) {
  return cap * tanhf(u * inverse);
}

struct SoftCapOperation {
  float *logits, cap;

  template <int N>
  __device__ void At(int64_t i) const {
    Vector<float, N> z = LoadVector<N>(logits + i);
#pragma unroll
    for (int j = 0; j < N; ++j) z.Set(j, Capped(z[j], cap, 1.0f / cap));
    StoreVector(logits + i, z);
  }
};

// Each thread's sum is for the largest logit that it has met so far.
template <int kRowWidth, bool kCapped>
__global__ void __launch_bounds__(kThreads)
    SoftmaxPartialsKernel(float* logits, const int32_t* __restrict__ labels, int64_t columns,
                          int64_t first, float cap, float* __restrict__ row_max,
                          float* __restrict__ sums, float* __restrict__ at_label) {
  __shared__ float shared[2][32];
  const int64_t n = blockIdx.x;
  float* row = logits + n * columns;
  const float inverse = kCapped ? 1.0f / cap : 0.0f;
  float largest = -INFINITY, sum = 0;
  ForRow<kRowWidth>(row, columns, [&](int64_t j, Vector<float, kRowWidth>& z) {
    float met = largest;
#pragma unroll
    for (int i = 0; i < kRowWidth; ++i) {
      if constexpr (kCapped) z.Set(i, Capped(z[i], cap, inverse));
      met = fmaxf(met, z[i]);
    }
    if constexpr (kCapped) StoreVector(row + j, z);
    if (met > largest) {
      sum *= __expf(largest - met);
      largest = met;
    }
    const float shift = largest == -INFINITY ? 0.0f : largest;  // infinities have no difference
#pragma unroll
    for (int i = 0; i < kRowWidth; ++i) sum += __expf(z[i] - shift);
  });
  const float of_row = BlockMax(largest, shared[0]);
  sum = BlockSum(sum * __expf(largest - of_row), shared[1]);
  if (threadIdx.x != 0) return;
  row_max[n] = of_row;
  sums[n] = sum;
  const int64_t column = labels[n] - first;
  const bool here = labels[n] >= 0 && column >= 0 && column < columns;
  at_label[n] = here ? row[column] : 0.0f;
}

__global__ void __launch_bounds__(kThreads)
    RescaleKernel(const float* __restrict__ own_max, const float* __restrict__ row_max,
                  int64_t tokens, float* __restrict__ sums) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n < tokens) sums[n] *= expf(own_max[n] - row_max[n]);
}

template <int kRowWidth>
__global__ void __launch_bounds__(kThreads)
    RowArgmaxKernel(const float* __restrict__ logits, const float* __restrict__ row_max,
                    int64_t columns, int64_t first, int32_t* __restrict__ predicted) {
  __shared__ int last;
  if (threadIdx.x == 0) last = -1;
  __syncthreads();
  const int64_t n = blockIdx.x;
  const float largest = row_max[n];
  int own = -1;
  ForRow<kRowWidth>(logits + n * columns, columns,
                    [&](int64_t j, const Vector<float, kRowWidth>& z) {
#pragma unroll
                      for (int i = 0; i < kRowWidth; ++i) {
                        if (z[i] == largest) own = max(own, static_cast<int>(j) + i);
                      }
                    });
  // A maximum of integers does not depend on the order in which they come.
  if (own >= 0) atomicMax(&last, own);
  __syncthreads();
  if (threadIdx.x == 0) predicted[n] = last < 0 ? -1 : static_cast<int32_t>(first + last);
}

// loss += {sum of the losses, valid labels}; one block, each thread every 1024th token.
constexpr int kLossThreads = 1024;
__global__ void __launch_bounds__(kLossThreads)
    LossKernel(const int32_t* __restrict__ labels, const float* __restrict__ row_max,
               const float* __restrict__ partials, int64_t tokens, double* loss) {
  __shared__ double shared[2][32];
  double sum = 0, valid = 0;
  for (int64_t n = threadIdx.x; n < tokens; n += kLossThreads) {
    if (labels[n] < 0) continue;
    valid += 1;
    // The two large terms first: their difference is exact when the label is the likely one.
    sum += log(static_cast<double>(partials[n])) +
           (static_cast<double>(row_max[n]) - static_cast<double>(partials[tokens + n]));
  }
  sum = BlockSum(sum, shared[0]);
  valid = BlockSum(valid, shared[1]);
  if (threadIdx.x != 0) return;
  loss[0] += sum;
  loss[1] += valid;
}

// dlogits may be the memory of logits: a thread reads what it is about to write.
template <class T, int kRowWidth>
__global__ void __launch_bounds__(kThreads)
    GradKernel(const float* logits, const int32_t* __restrict__ labels,
               const float* __restrict__ row_max, const float* __restrict__ sums, T* dlogits,
               int64_t columns, int64_t first, float inverse_cap, double scale) {
  const int64_t n = blockIdx.x, label = labels[n];
  const bool ignored = label < 0;
  const int64_t column = ignored ? -1 : label - first;
  const float largest = row_max[n], taken = static_cast<float>(scale);
  const float factor = static_cast<float>(scale / static_cast<double>(sums[n]));
  T* out = dlogits + n * columns;
  ForRow<kRowWidth>(
      logits + n * columns, columns, [&](int64_t j, const Vector<float, kRowWidth>& z) {
        Vector<T, kRowWidth> du;
#pragma unroll
        for (int i = 0; i < kRowWidth; ++i) {
          const float t = z[i] * inverse_cap, slope = 1.0f - t * t;
          const float softmax = factor * expf(z[i] - largest);
          du.Set(i, ignored ? 0.0f : slope * (softmax - (j + i == column ? taken : 0.0f)));
        }
        StoreVector(out + j, du);
      });
}

bool Vectors(const Tensor& logits) {
  return logits.dim(1) % kWidth == 0 && Aligned<kWidth>(logits.data<float>());
}

}  // namespace

void SoftCapCuda(const Tensor& logits, double soft_cap) {
  float* z = logits.data<float>();
  LaunchElementwise<kWidth>("soft_cap", logits.size(), Aligned<kWidth>(z),
                            SoftCapOperation{z, static_cast<float>(soft_cap)});
}

void SoftmaxPartialsCuda(const SoftmaxPartialsArgs& args) {
  const int64_t tokens = args.logits.dim(0);
  float* sums = args.partials.data<float>();
  const auto launch = [&](auto body) {
    Launch("softmax_partials", body, static_cast<unsigned>(tokens), kThreads, 0,
           args.logits.data<float>(), args.labels.data<int32_t>(), args.logits.dim(1), args.first,
           static_cast<float>(args.soft_cap), args.row_max.data<float>(), sums, sums + tokens);
  };
  const bool capped = args.soft_cap > 0.0;
  if (Vectors(args.logits)) {
    launch(capped ? SoftmaxPartialsKernel<kWidth, true> : SoftmaxPartialsKernel<kWidth, false>);
  } else {
    launch(capped ? SoftmaxPartialsKernel<1, true> : SoftmaxPartialsKernel<1, false>);
  }
}

void RescalePartialsCuda(const Tensor& own_max, const Tensor& row_max, const Tensor& partials) {
  Launch("rescale_partials", RescaleKernel, Pieces(own_max.size(), kThreads), kThreads, 0,
         own_max.data<float>(), row_max.data<float>(), own_max.size(), partials.data<float>());
}

void RowArgmaxCuda(const RowArgmaxArgs& args) {
  Launch("row_argmax", Vectors(args.logits) ? RowArgmaxKernel<kWidth> : RowArgmaxKernel<1>,
         static_cast<unsigned>(args.logits.dim(0)), kThreads, 0, args.logits.data<float>(),
         args.row_max.data<float>(), args.logits.dim(1), args.first,
         args.predicted.data<int32_t>());
}

void CrossEntropyLossCuda(const Tensor& labels, const Tensor& row_max, const Tensor& partials,
                          const Tensor& loss) {
  Launch("cross_entropy_loss", LossKernel, 1, kLossThreads, 0, labels.data<int32_t>(),
         row_max.data<float>(), partials.data<float>(), row_max.dim(0), loss.data<double>());
}

void CrossEntropyGradCuda(const CrossEntropyGradArgs& args) {
  const char* kernel = "cross_entropy_grad";
  const double inverse_cap = args.soft_cap > 0.0 ? 1.0 / args.soft_cap : 0.0;
  DispatchCuda(kernel, args.dlogits, [&]<class T>(T) {
    T* dlogits = args.dlogits.data<T>();
    const bool vectors = Vectors(args.logits) && Aligned<kWidth>(dlogits);
    Launch(kernel, vectors ? GradKernel<T, kWidth> : GradKernel<T, 1>,
           static_cast<unsigned>(args.logits.dim(0)), kThreads, 0, args.logits.data<float>(),
           args.labels.data<int32_t>(), args.row_max.data<float>(), args.partials.data<float>(),
           dlogits, args.logits.dim(1), args.first, static_cast<float>(inverse_cap), args.scale);
  });
}

}  // namespace eyrie
