// LayerNorm on the GPU. N rows of G groups of D channels. A team of threads, a part of a warp or a
// whole block, holds a group in registers, each thread kVectors vectors of kWidth elements that lie
// a team's width apart: one pass over every tensor.
#include <algorithm>

#include "kernels/column_sum.cuh"
#include "kernels/norm/layer_norm_cuda.h"
#include "kernels/norm/rms_norm_cuda.h"

namespace eyrie {
namespace {

constexpr int kLaneThreads = 256;  // of a block that is many teams

// Part of a warp.
template <int kLanes>
struct LaneTeam {
  static constexpr int kMaxThreads = kLaneThreads, kMinBlocks = 2;
  static __device__ int Size() { return kLanes; }
  static __device__ int Index() { return static_cast<int>(threadIdx.x) % kLanes; }
  static __device__ int64_t Number() {
    return int64_t{blockIdx.x} * (kLaneThreads / kLanes) + threadIdx.x / kLanes;
  }
  // Over the team. All teams of a warp come here together.
  static __device__ float Sum(float x, float*) {
#pragma unroll
    for (int lane = kLanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
  }
};
// A whole block of at most kMost threads, kBlocks of which should fit a multiprocessor.
template <int kMost, int kBlocks>
struct BlockTeam {
  static constexpr int kMaxThreads = kMost, kMinBlocks = kBlocks;
  static __device__ int Size() { return static_cast<int>(blockDim.x); }
  static __device__ int Index() { return static_cast<int>(threadIdx.x); }
  static __device__ int64_t Number() { return blockIdx.x; }
  static __device__ float Sum(float x, float* shared) { return BlockSum(x, shared); }
};

// Group `group` of all N G.
template <class Team, class T, int kWidth, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, Team::kMinBlocks)
    ForwardKernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y,
                  float* __restrict__ mean, float* __restrict__ rstd, int64_t all_groups,
                  int groups, int width, float epsilon) {
  __shared__ float shared[2][32];
  const int64_t group = Team::Number(), row = group * width;
  const int first = Team::Index() * kWidth, step = Team::Size() * kWidth;
  const int end = group < all_groups ? width : 0;

  Vector<T, kWidth> values[kVectors];
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at < end) values[k] = LoadVector<kWidth>(x + row + at);
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (first + k * step >= end) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += values[k][i];
  }
  const float middle = Team::Sum(sum, shared[0]) / static_cast<float>(width);
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (first + k * step >= end) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += (values[k][i] - middle) * (values[k][i] - middle);
  }
  const float r = rsqrtf(Team::Sum(squares, shared[1]) / static_cast<float>(width) + epsilon);
  if (end > 0 && first == 0) {
    mean[group] = middle;
    rstd[group] = r;
  }
  const T* weights = weight + group % groups * width;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= end) continue;
    const Vector<T, kWidth> w = LoadVector<kWidth>(weights + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[k].Set(i, (values[k][i] - middle) * r * (1.0f + w[i]));
    StoreVector(y + row + at, values[k]);
  }
}

// Team s G + g takes group g of rows s, s + stripes, ... and keeps their share of dweight in
// registers; partial [stripes, G, D] := these shares. The weight is not declared __restrict__, so
// that it is read again rather than kept.
template <class Team, class T, int kWidth, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, Team::kMinBlocks)
    BackwardKernel(const T* __restrict__ x, const T* weight, const float* __restrict__ mean,
                   const float* __restrict__ rstd, const T* __restrict__ dy, const T* dresidual,
                   T* dx, float* __restrict__ partial, int64_t rows, int stripes, int groups,
                   int width) {
  __shared__ float shared[2][32];
  const int64_t team = Team::Number();
  const int64_t stripe = team / groups;
  const int column = static_cast<int>(team % groups);
  const int first = Team::Index() * kWidth, step = Team::Size() * kWidth;
  const T* weights = weight + int64_t{column} * width;
  float dweight[kVectors][kWidth] = {};

  // As often for every team of a warp, whether or not it has a row left.
  for (int64_t begin = 0; begin < rows; begin += stripes) {
    const bool exists = stripe < stripes && begin + stripe < rows;
    const int64_t group = (begin + stripe) * groups + column, row = group * width;
    const int end = exists ? width : 0;
    const float middle = exists ? mean[group] : 0.0f, r = exists ? rstd[group] : 0.0f;
    Vector<T, kWidth> values[kVectors], gradients[kVectors], added[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= end) continue;
      values[k] = LoadVector<kWidth>(x + row + at);
      gradients[k] = LoadVector<kWidth>(dy + row + at);
      if (dresidual != nullptr) added[k] = LoadVector<kWidth>(dresidual + row + at);
    }
    float sum = 0, dot = 0;  // of u = dy (1 + weight), and of u times the normed x
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= end) continue;
      const Vector<T, kWidth> w = LoadVector<kWidth>(weights + at);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float u = gradients[k][i] * (1.0f + w[i]);
        sum += u;
        dot += u * (values[k][i] - middle) * r;
      }
    }
    const float shift = Team::Sum(sum, shared[0]) / static_cast<float>(width);
    const float along = Team::Sum(dot, shared[1]) / static_cast<float>(width);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= end) continue;
      const Vector<T, kWidth> w = LoadVector<kWidth>(weights + at);
      Vector<T, kWidth> out;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float normed = (values[k][i] - middle) * r;
        const float d = r * (gradients[k][i] * (1.0f + w[i]) - shift - normed * along);
        out.Set(i, dresidual != nullptr ? d + added[k][i] : d);
        dweight[k][i] += gradients[k][i] * normed;
      }
      StoreVector(dx + row + at, out);
    }
  }
  if (stripe >= stripes) return;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= width) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) partial[team * width + at + i] = dweight[k][i];
  }
}

// How a launch is cut into blocks.
struct Blocks {
  unsigned threads, teams;  // of a block
};

// Calls body<team, vectors' width, vectors of a thread>(blocks) for groups of so many channels.
template <class T, class Body>
void PickTeam(int64_t width, bool fits_vectors, const Body& body) {
  const auto lanes = [&]<int kLanes, int kWidth, int kVectors>() {
    const Blocks blocks{kLaneThreads, kLaneThreads / kLanes};
    body.template operator()<LaneTeam<kLanes>, kWidth, kVectors>(blocks);
  };
  const auto block = [&]<int kMost, int kMinBlocks, int kWidth, int kVectors>() {
    const Blocks blocks{32 * Pieces(width, 32 * kWidth * kVectors), 1};
    body.template operator()<BlockTeam<kMost, kMinBlocks>, kWidth, kVectors>(blocks);
  };
  constexpr int kWidth = kVectorWidth<T>, kMost = static_cast<int>(kMaxNormWidthCuda);
  if (!fits_vectors) {
    width <= 128 ? lanes.template operator()<32, 1, 4>()
                 : block.template operator()<kMost / 16, 1, 1, 16>();
  } else if (width <= 8 * kWidth) {
    lanes.template operator()<8, kWidth, 1>();
  } else if (width <= 16 * kWidth) {
    lanes.template operator()<16, kWidth, 1>();
  } else if (width <= 32 * kWidth) {
    lanes.template operator()<32, kWidth, 1>();
  } else if (width <= 64 * kWidth) {
    lanes.template operator()<32, kWidth, 2>();
  } else if (width <= 256 * kWidth) {
    block.template operator()<256, 4, kWidth, 1>();
  } else if (width <= 512 * kWidth) {
    block.template operator()<256, 2, kWidth, 2>();
  } else {
    block.template operator()<kMost / (4 * kWidth), 1, kWidth, 4>();
  }
}

// Stripes of the backward pass: about 1024 threads for each multiprocessor, of 16 elements each,
// and not so many that adding up their shares takes long.
int Stripes(const Tensor& x) {
  const int64_t row_width = x.dim(-2) * x.dim(-1), rows = x.size() / row_width;
  const int64_t each = std::clamp<int64_t>(1024 * 16 / row_width, 1, 32);
  return static_cast<int>(std::min(rows, each * Multiprocessors()));
}

void CheckWidth(const char* kernel, int64_t width) {
  EYRIE_CHECK(width <= kMaxNormWidthCuda, kernel, ": groups of ", width, " elements, at most ",
              kMaxNormWidthCuda);
}

}  // namespace

void LayerNormForwardCuda(const LayerNormForwardArgs& args) {
  const char* kernel = "LayerNormForward";
  const int64_t width = args.x.dim(-1), all_groups = args.x.size() / width;
  CheckWidth(kernel, width);
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const T *x = args.x.data<T>(), *weight = args.weight.data<T>();
    T* y = args.y.data<T>();
    PickTeam<T>(width, AllFitVectors<T>(width, {x, weight, y}),
                [&]<class Team, int kWidth, int kVectors>(Blocks blocks) {
                  Launch(kernel, ForwardKernel<Team, T, kWidth, kVectors>,
                         Pieces(all_groups, blocks.teams), blocks.threads, 0, x, weight, y,
                         args.mean.data<float>(), args.rstd.data<float>(), all_groups,
                         static_cast<int>(args.x.dim(-2)), static_cast<int>(width),
                         static_cast<float>(args.epsilon));
                });
  });
}

int64_t LayerNormBackwardWorkspaceCuda(const Tensor& x) {
  return Stripes(x) * x.dim(-2) * x.dim(-1);
}

void LayerNormBackwardCuda(const LayerNormBackwardArgs& args) {
  const char* kernel = "LayerNormBackward";
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1);
  const int64_t rows = args.x.size() / (groups * width);
  CheckWidth(kernel, width);
  if (rows == 0) return;
  const int stripes = Stripes(args.x);
  float* partial = args.workspace.data<float>();
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const T *x = args.x.data<T>(), *weight = args.weight.data<T>(), *dy = args.dy.data<T>();
    const T* dresidual = args.dresidual.data<T>();
    T* dx = args.dx.data<T>();
    PickTeam<T>(width, AllFitVectors<T>(width, {x, weight, dy, dresidual, dx}),
                [&]<class Team, int kWidth, int kVectors>(Blocks blocks) {
                  Launch(kernel, BackwardKernel<Team, T, kWidth, kVectors>,
                         Pieces(stripes * groups, blocks.teams), blocks.threads, 0, x, weight,
                         args.mean.data<float>(), args.rstd.data<float>(), dy, dresidual, dx,
                         partial, rows, stripes, static_cast<int>(groups), static_cast<int>(width));
                });
  });
  AddColumnSums(kernel, partial, stripes, groups * width, args.dweight.data<float>());
}

}  // namespace eyrie
