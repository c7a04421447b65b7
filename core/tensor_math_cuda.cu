// The CUDA side of core/tensor_math.h.
#include "core/early_launch.cuh"
#include "core/numbers.cuh"
#include "core/round.h"
#include "core/tensor_math.h"

namespace eyrie {
namespace {

constexpr int kThreads = 256;

unsigned Blocks(int64_t elements) {
  return static_cast<unsigned>(
      std::min<int64_t>(CeilDiv(elements, kThreads), 32 * Multiprocessors()));
}

// Sequence blockIdx.y; `count` elements of it.
template <class T>
__global__ void AddRowsKernel(const T* from, int64_t from_stride, T* to, int64_t to_stride,
                              int64_t count) {
  from += blockIdx.y * from_stride;
  to += blockIdx.y * to_stride;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    to[i] = FromFloat<T>(ToFloat(to[i]) + ToFloat(from[i]));
  }
}

// Sequence blockIdx.y; in vectors: `now_count` of `now` follow the last `count` - `now_count` of
// `before`.
__global__ void KeepTailKernel(const uint4* before, const uint4* now, uint4* after, int64_t count,
                               int64_t now_count) {
  LetNextStart();
  AwaitEarlier();
  now += blockIdx.y * now_count;
  after += blockIdx.y * count;
  if (before != nullptr) before += blockIdx.y * count + now_count;
  const int64_t old = count - now_count, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint4 vector{0, 0, 0, 0};
    if (i >= old) {
      vector = now[i - old];
    } else if (before != nullptr) {
      vector = before[i];
    }
    after[i] = vector;
  }
}

__global__ void MultiplyAddKernel(const float* factor, const float* addend, float* state,
                                  const float* weight, int64_t count, int64_t each) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const float term = weight == nullptr ? addend[i] : weight[i / each] * addend[i];
    state[i] = fmaf(factor[i / each], state[i], term);
  }
}

__global__ void StabiliseSumKernel(const float* log_decay, const float* increment_m, float* m,
                                   float* keep, float* add, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const float kept = log_decay[i] + m[i], most = fmaxf(kept, increment_m[i]);
    keep[i] = expf(kept - most);
    add[i] = expf(increment_m[i] - most);
    m[i] = most;
  }
}

__global__ void FillKernel(float* to, float value, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    to[i] = value;
  }
}

template <class From, class To>
__global__ void ConvertKernel(const From* from, To* to, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    to[i] = FromFloat<To>(ToFloat(from[i]));
  }
}

}  // namespace

namespace cuda {

void AddRows(const Tensor& from, int64_t from_row, const Tensor& to, int64_t to_row, int64_t rows) {
  const int64_t width = from.dim(2), count = rows * width;
  DispatchCuda("AddRows", to, [&]<class T>(T) {
    const dim3 grid(Blocks(count), static_cast<unsigned>(from.dim(0)));
    Launch("AddRows", AddRowsKernel<T>, grid, kThreads, 0,
           static_cast<const T*>(from.raw) + from_row * width, from.dim(1) * width,
           static_cast<T*>(to.raw) + to_row * width, to.dim(1) * width, count);
  });
}

void KeepTail(const Tensor& before, const Tensor& now, const Tensor& after) {
  const auto vectors = [](const Tensor& tensor) {
    return static_cast<int64_t>(tensor.bytes() / sizeof(uint4)) / tensor.dim(0);
  };
  if (after.size() == 0) return;
  LaunchEarly("KeepTail", KeepTailKernel,
              dim3(Blocks(vectors(after)), static_cast<unsigned>(after.dim(0))), kThreads, 0,
              static_cast<const uint4*>(before.raw), static_cast<const uint4*>(now.raw),
              static_cast<uint4*>(after.raw), vectors(after), vectors(now));
}

void MultiplyAdd(const Tensor& factor, const Tensor& addend, const Tensor& state,
                 const Tensor& weight) {
  const int64_t count = state.size();
  Launch("MultiplyAdd", MultiplyAddKernel, Blocks(count), kThreads, 0, factor.data<float>(),
         addend.data<float>(), state.data<float>(), weight.data<float>(), count,
         count / factor.size());
}

void StabiliseSum(const Tensor& log_decay, const Tensor& increment_m, const Tensor& m,
                  const Tensor& keep, const Tensor& add) {
  Launch("StabiliseSum", StabiliseSumKernel, Blocks(m.size()), kThreads, 0, log_decay.data<float>(),
         increment_m.data<float>(), m.data<float>(), keep.data<float>(), add.data<float>(),
         m.size());
}

void Fill(const Tensor& tensor, double value) {
  Launch("Fill", FillKernel, Blocks(tensor.size()), kThreads, 0, tensor.data<float>(),
         static_cast<float>(value), tensor.size());
}

void Convert(const Tensor& from, const Tensor& to) {
  DispatchCuda("Convert", from, [&]<class From>(From) {
    DispatchCuda("Convert", to, [&]<class To>(To) {
      Launch("Convert", ConvertKernel<From, To>, Blocks(to.size()), kThreads, 0,
             static_cast<const From*>(from.raw), static_cast<To*>(to.raw), to.size());
    });
  });
}

}  // namespace cuda
}  // namespace eyrie
