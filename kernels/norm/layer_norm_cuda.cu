// LayerNorm on the GPU. N rows of G groups of D channels, each held by a team of threads
// (norm_teams.cuh): one pass over every tensor.
#include "kernels/column_sum.cuh"
#include "kernels/norm/layer_norm_cuda.h"
#include "kernels/norm/norm_teams.cuh"
#include "kernels/norm/rms_norm_cuda.h"

namespace eyrie {
namespace {

// Group `group` of all N G.
template <class Team, class T, int kWidth, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, Team::kMinBlocks)
    ForwardKernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y,
                  float* __restrict__ mean, float* __restrict__ rstd, int64_t all_groups,
                  int groups, int width, float epsilon) {
  const int64_t group = Team::Number(), row = group * width;
  const int first = Team::Index() * kWidth, step = Team::Size() * kWidth;
  const int end = group < all_groups ? width : 0;

  Vector<T, kWidth> values[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at < end) values[k] = LoadVector<kWidth>(x + row + at);
  }
  const auto [middle, r] = StatisticsOf<Team>(values, end, width, epsilon);
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

}  // namespace

void LayerNormForwardCuda(const LayerNormForwardArgs& args) {
  const char* kernel = "LayerNormForward";
  const int64_t width = args.x.dim(-1), all_groups = args.x.size() / width;
  CheckNormWidth(kernel, width);
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const T *x = args.x.data<T>(), *weight = args.weight.data<T>();
    T* y = args.y.data<T>();
    PickTeam<T, kMaxNormWidthCuda>(
        width, AllFitVectors<T>(width, {x, weight, y}),
        [&]<class Team, int kWidth, int kVectors>(Blocks blocks) {
          Launch(kernel, ForwardKernel<Team, T, kWidth, kVectors>, Pieces(all_groups, blocks.teams),
                 blocks.threads, 0, x, weight, y, args.mean.data<float>(), args.rstd.data<float>(),
                 all_groups, static_cast<int>(args.x.dim(-2)), static_cast<int>(width),
                 static_cast<float>(args.epsilon));
        });
  });
}

void LayerNormBackwardCuda(const LayerNormBackwardArgs& args) {
  const char* kernel = "LayerNormBackward";
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1);
  const int64_t rows = args.x.size() / (groups * width);
  CheckNormWidth(kernel, width);
  if (rows == 0) return;
  const int stripes = LayerNormStripes(args.x);
  float* partial = args.workspace.data<float>();
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const T *x = args.x.data<T>(), *weight = args.weight.data<T>(), *dy = args.dy.data<T>();
    const T* dresidual = args.dresidual.data<T>();
    T* dx = args.dx.data<T>();
    PickTeam<T, kMaxNormWidthCuda>(
        width, AllFitVectors<T>(width, {x, weight, dy, dresidual, dx}),
        [&]<class Team, int kWidth, int kVectors>(Blocks blocks) {
          Launch(kernel, BackwardKernel<Team, T, kWidth, kVectors>,
                 Pieces(stripes * groups, blocks.teams), blocks.threads, 0, x, weight,
                 args.mean.data<float>(), args.rstd.data<float>(), dy, dresidual, dx, partial, rows,
                 stripes, static_cast<int>(groups), static_cast<int>(width));
        });
  });
  AddColumnSums(kernel, partial, stripes, groups * width, args.dweight.data<float>());
}

}  // namespace eyrie
