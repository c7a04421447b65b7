// The gated LayerNorm on the GPU. N rows of G groups of D channels, each held by a team of threads
// (norm_teams.cuh): one pass over every tensor.
#include "kernels/column_sum.cuh"
#include "kernels/gated_norm/gated_layer_norm_cuda.h"
#include "kernels/norm/layer_norm_cuda.h"
#include "kernels/norm/norm_teams.cuh"
#include "kernels/norm/rms_norm_cuda.h"

namespace eyrie {
namespace {

// act(z) = f sigmoid(z), with f = z or 1.
struct Gate {
  __device__ __forceinline__ Gate(float z, bool silu) {
    const float a = Sigmoid(z), f = silu ? z : 1.0f;
    value = f * a;
    slope = a * ((silu ? 1.0f : 0.0f) + f * (1.0f - a));
  }
  float value, slope;
};

template <class T>
struct ForwardTensors {
  const T *x, *weight, *skip, *s, *gate;
  T* out;
  float *mean, *rstd;
};

// Group `group` of all N G.
template <class Team, class T, int kWidth, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads, Team::kMinBlocks)
    ForwardKernel(const ForwardTensors<T> tensors, int64_t all_groups, int groups, int width,
                  float epsilon, bool silu) {
  const int64_t group = Team::Number(), row = group * width;
  const int64_t column = group % groups * width;
  const int first = Team::Index() * kWidth, step = Team::Size() * kWidth;
  const int end = group < all_groups ? width : 0;
  const bool skips = tensors.s != nullptr;

  // All loads are under way before the first of them is waited for.
  Vector<T, kWidth> values[kVectors], gates[kVectors], past[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= end) continue;
    values[k] = LoadVector<kWidth>(tensors.x + row + at);
    gates[k] = LoadVector<kWidth>(tensors.gate + row + at);
    if (skips) past[k] = LoadVector<kWidth>(tensors.s + row + at);
  }
  const auto [middle, r] = StatisticsOf<Team>(values, end, width, epsilon);
  if (end > 0 && first == 0) {
    tensors.mean[group] = middle;
    tensors.rstd[group] = r;
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= end) continue;
    const Vector<T, kWidth> w = LoadVector<kWidth>(tensors.weight + column + at);
    Vector<T, kWidth> skip, out;
    if (skips) skip = LoadVector<kWidth>(tensors.skip + column + at);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      float value = (values[k][i] - middle) * r * (1.0f + w[i]);
      if (skips) value = fmaf(skip[i], past[k][i], value);
      out.Set(i, value * Gate(gates[k][i], silu).value);
    }
    StoreVector(tensors.out + row + at, out);
  }
}

template <class T>
struct BackwardTensors {
  const T *x, *weight, *skip, *s, *gate;
  const float *mean, *rstd;
  const T* dout;
  T *dx, *ds, *dgate;
  float* x_dx;  // or null
  float epsilon;
  float *dweight, *dskip;  // each [stripes, G, D]
};

// Team s G + g takes group g of rows s, s + stripes, ... and keeps their shares of dweight and
// dskip in registers, which it writes in the end.
template <class Team, class T, int kWidth, int kVectors>
__global__ void __launch_bounds__(Team::kMaxThreads,
                                  kVectors > 1 ? 1 : std::min(3, Team::kMinBlocks))
    BackwardKernel(const BackwardTensors<T> tensors, int64_t rows, int stripes, int groups,
                   int width, bool silu) {
  __shared__ float shared[2][32];
  const int64_t team = Team::Number(), stripe = team / groups;
  const int column = static_cast<int>(team % groups);
  const int first = Team::Index() * kWidth, step = Team::Size() * kWidth;
  const T *weights = tensors.weight + int64_t{column} * width, *skip_weights = tensors.skip;
  const bool skips = tensors.s != nullptr;
  if (skips) skip_weights += int64_t{column} * width;
  float dweight[kVectors][kWidth] = {}, dskip[kVectors][kWidth] = {};

  // As often for every team of a warp, whether or not it has a row left.
  for (int64_t begin = 0; begin < rows; begin += stripes) {
    const bool exists = stripe < stripes && begin + stripe < rows;
    const int64_t group = (begin + stripe) * groups + column, row = group * width;
    const int end = exists ? width : 0;
    // All loads are under way before the first of them is waited for, and before a gradient is
    // stored over dout.
    Vector<T, kWidth> values[kVectors], gates[kVectors], past[kVectors], gradients[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= end) continue;
      values[k] = LoadVector<kWidth>(tensors.x + row + at);
      gates[k] = LoadVector<kWidth>(tensors.gate + row + at);
      gradients[k] = LoadVector<kWidth>(tensors.dout + row + at);
      if (skips) past[k] = LoadVector<kWidth>(tensors.s + row + at);
    }
    const float middle = exists ? tensors.mean[group] : 0.0f;
    const float r = exists ? tensors.rstd[group] : 0.0f;
    float dvalue[kVectors][kWidth];  // the gradient of what is gated
    float sum = 0, dot = 0;          // of u = dvalue (1 + weight), and of u times the normed x
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= end) continue;
      const Vector<T, kWidth> w = LoadVector<kWidth>(weights + at);
      Vector<T, kWidth> skip, dgate, ds;
      if (skips) skip = LoadVector<kWidth>(skip_weights + at);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float normed = (values[k][i] - middle) * r;
        float value = normed * (1.0f + w[i]);
        if (skips) value = fmaf(skip[i], past[k][i], value);
        const Gate gate(gates[k][i], silu);
        const float d = gradients[k][i] * gate.value;
        dgate.Set(i, gradients[k][i] * value * gate.slope);
        if (skips) {
          ds.Set(i, d * skip[i]);
          dskip[k][i] = fmaf(d, past[k][i], dskip[k][i]);
        }
        dweight[k][i] = fmaf(d, normed, dweight[k][i]);
        dvalue[k][i] = d;
        const float u = d * (1.0f + w[i]);
        sum += u;
        dot = fmaf(u, normed, dot);
      }
      StoreVector(tensors.dgate + row + at, dgate);
      if (skips) StoreVector(tensors.ds + row + at, ds);
    }
    const float shift = Team::Sum(sum, shared[0]) / static_cast<float>(width);
    const float all = Team::Sum(dot, shared[1]), along = all / static_cast<float>(width);
    if (tensors.x_dx != nullptr && exists && Team::Index() == 0) {
      tensors.x_dx[group] = all * tensors.epsilon * r * r;
    }
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * step;
      if (at >= end) continue;
      const Vector<T, kWidth> w = LoadVector<kWidth>(weights + at);
      Vector<T, kWidth> dx;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float normed = (values[k][i] - middle) * r;
        dx.Set(i, r * (dvalue[k][i] * (1.0f + w[i]) - shift - normed * along));
      }
      StoreVector(tensors.dx + row + at, dx);
    }
  }
  if (stripe >= stripes) return;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int at = first + k * step;
    if (at >= width) continue;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      tensors.dweight[team * width + at + i] = dweight[k][i];
      if (skips) tensors.dskip[team * width + at + i] = dskip[k][i];
    }
  }
}

}  // namespace

void GatedLayerNormForwardCuda(const GatedLayerNormForwardArgs& args) {
  const char* kernel = "GatedLayerNormForward";
  const int64_t width = args.x.dim(-1), all_groups = args.x.size() / width;
  CheckNormWidth(kernel, width, kMaxGatedLayerNormWidthCuda);
  if (all_groups == 0) return;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const ForwardTensors<T> tensors{.x = args.x.data<T>(),
                                    .weight = args.weight.data<T>(),
                                    .skip = args.skip.data<T>(),
                                    .s = args.s.data<T>(),
                                    .gate = args.gate.data<T>(),
                                    .out = args.out.data<T>(),
                                    .mean = args.mean.data<float>(),
                                    .rstd = args.rstd.data<float>()};
    const bool vectors = AllFitVectors<T>(
        width, {tensors.x, tensors.weight, tensors.skip, tensors.s, tensors.gate, tensors.out});
    PickTeam<T, kMaxGatedLayerNormWidthCuda>(
        width, vectors, [&]<class Team, int kWidth, int kVectors>(Blocks blocks) {
          Launch(kernel, ForwardKernel<Team, T, kWidth, kVectors>, Pieces(all_groups, blocks.teams),
                 blocks.threads, 0, tensors, all_groups, static_cast<int>(args.x.dim(-2)),
                 static_cast<int>(width), static_cast<float>(args.epsilon),
                 args.activation == Activation::kSilu);
        });
  });
}

void GatedLayerNormBackwardCuda(const GatedLayerNormBackwardArgs& args) {
  const char* kernel = "GatedLayerNormBackward";
  const int64_t groups = args.x.dim(-2), width = args.x.dim(-1);
  const int64_t rows = args.x.size() / (groups * width);
  CheckNormWidth(kernel, width, kMaxGatedLayerNormWidthCuda);
  if (rows == 0) return;
  const int stripes = LayerNormStripes(args.x);
  float* dweight = args.workspace.data<float>();
  float* dskip = args.skip.defined() ? dweight + stripes * groups * width : nullptr;
  DispatchCuda(kernel, args.x, [&]<class T>(T) {
    const BackwardTensors<T> tensors{.x = args.x.data<T>(),
                                     .weight = args.weight.data<T>(),
                                     .skip = args.skip.data<T>(),
                                     .s = args.s.data<T>(),
                                     .gate = args.gate.data<T>(),
                                     .mean = args.mean.data<float>(),
                                     .rstd = args.rstd.data<float>(),
                                     .dout = args.dout.data<T>(),
                                     .dx = args.dx.data<T>(),
                                     .ds = args.ds.data<T>(),
                                     .dgate = args.dgate.data<T>(),
                                     .x_dx = args.x_dx.data<float>(),
                                     .epsilon = static_cast<float>(args.epsilon),
                                     .dweight = dweight,
                                     .dskip = dskip};
    const T* ds = args.skip.defined() ? tensors.ds : nullptr;
    const bool vectors =
        AllFitVectors<T>(width, {tensors.x, tensors.weight, tensors.skip, tensors.s, tensors.gate,
                                 tensors.dout, tensors.dx, ds, tensors.dgate});
    PickTeam<T, kMaxGatedLayerNormWidthCuda>(
        width, vectors, [&]<class Team, int kWidth, int kVectors>(Blocks blocks) {
          Launch(kernel, BackwardKernel<Team, T, kWidth, kVectors>,
                 Pieces(stripes * groups, blocks.teams), blocks.threads, 0, tensors, rows, stripes,
                 static_cast<int>(groups), static_cast<int>(width),
                 args.activation == Activation::kSilu);
        });
  });
  AddColumnSums(kernel, dweight, stripes, groups * width, args.dweight.data<float>());
  if (dskip != nullptr) {
    AddColumnSums(kernel, dskip, stripes, groups * width, args.dskip.data<float>());
  }
}

}  // namespace eyrie
