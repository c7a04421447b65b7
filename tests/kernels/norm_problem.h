// A LayerNorm or RMSNorm forward and backward: the tensors of both, on any device, and what the
// tests of both do with them.
#pragma once

#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {

inline constexpr double kNormEpsilon = 1e-2;  // large enough for its place to matter

// Rows of D, or of G groups of D. RMSNorm has no means.
struct NormTensors {
  OwnedTensor x, weight, dy, dresidual;
  OwnedTensor dweight;  // added to
  OwnedTensor y, mean, rstd, dx, workspace;

  Tensor residual(bool given) const { return given ? dresidual.tensor : Tensor{}; }
};

struct LayerNormProblem : NormTensors {
  static constexpr int kWeightRank = 2;
  static constexpr int64_t kNarrowest = 2;  // one channel alone is its own mean
  static constexpr OwnedTensor NormTensors::*kOutputs[] = {&NormTensors::y, &NormTensors::mean,
                                                           &NormTensors::rstd, &NormTensors::dx,
                                                           &NormTensors::dweight};
  static int64_t Workspace(const Tensor& x) { return LayerNormBackwardWorkspace(x); }

  LayerNormForwardArgs forward() const {
    return {x.tensor, weight.tensor, kNormEpsilon, y.tensor, mean.tensor, rstd.tensor};
  }
  LayerNormBackwardArgs backward(bool with_residual) const {
    return {.x = x.tensor,
            .weight = weight.tensor,
            .mean = mean.tensor,
            .rstd = rstd.tensor,
            .dy = dy.tensor,
            .dresidual = residual(with_residual),
            .dx = dx.tensor,
            .dweight = dweight.tensor,
            .workspace = workspace.tensor};
  }
  static void Run(const LayerNormForwardArgs& args) { LayerNormForward(args); }
  static void Run(const LayerNormBackwardArgs& args) { LayerNormBackward(args); }
};

struct RmsNormProblem : NormTensors {
  static constexpr int kWeightRank = 1;
  static constexpr int64_t kNarrowest = 1;
  static constexpr OwnedTensor NormTensors::*kOutputs[] = {&NormTensors::y, &NormTensors::rstd,
                                                           &NormTensors::dx, &NormTensors::dweight};
  static int64_t Workspace(const Tensor& x) { return RmsNormBackwardWorkspace(x); }

  RmsNormForwardArgs forward() const {
    return {x.tensor, weight.tensor, kNormEpsilon, y.tensor, rstd.tensor};
  }
  RmsNormBackwardArgs backward(bool with_residual) const {
    return {.x = x.tensor,
            .weight = weight.tensor,
            .rstd = rstd.tensor,
            .dy = dy.tensor,
            .dresidual = residual(with_residual),
            .dx = dx.tensor,
            .dweight = dweight.tensor,
            .workspace = workspace.tensor};
  }
  static void Run(const RmsNormForwardArgs& args) { RmsNormForward(args); }
  static void Run(const RmsNormBackwardArgs& args) { RmsNormBackward(args); }
};

// The same inputs as copy(tensor) gives them, or copy_full(tensor) what has full precision, and
// outputs full of NaN.
template <class Problem, class Copy, class CopyFull>
Problem CopyNorm(const Problem& from, const Copy& copy, const CopyFull& copy_full) {
  const Tensor& x = from.x.tensor;
  const OwnedTensor like_x = PoisonedTensor(x.dtype, x.shape);
  const OwnedTensor statistic = PoisonedTensor(x.dtype, {x.size() / x.dim(-1)});
  Problem p;
  p.x = copy(x);
  p.weight = copy(from.weight.tensor);
  p.dy = copy(from.dy.tensor);
  p.dresidual = copy(from.dresidual.tensor);
  p.dweight = copy_full(from.dweight.tensor);
  p.y = copy(like_x.tensor);
  p.mean = copy_full(statistic.tensor);
  p.rstd = copy_full(statistic.tensor);
  p.dx = copy(like_x.tensor);
  if (const int64_t elements = Problem::Workspace(p.x.tensor); elements > 0) {
    p.workspace = copy_full(PoisonedTensor(DType::kF32, {elements}).tensor);
  }
  return p;
}

// On the CPU, all in one type.
template <class Problem>
Problem CastNorm(const Problem& from, DType dtype) {
  const auto cast = [&](const Tensor& tensor) { return Cast(tensor, dtype); };
  return CopyNorm(from, cast, cast);
}

// Inputs at random, a dweight of zeros.
template <class Problem>
Problem RandomNorm(DType dtype, Shape shape, TestRandom& random) {
  Shape weight{shape[-1]};
  if (Problem::kWeightRank == 2) weight = {shape[-2], shape[-1]};
  Problem p;
  p.x = RandomTensor(dtype, shape, random);
  p.weight = RandomTensor(dtype, weight, random, 0.3);
  p.dy = RandomTensor(dtype, shape, random);
  p.dresidual = RandomTensor(dtype, shape, random);
  p.dweight = OwnedTensor(dtype, weight);
  return CastNorm(p, dtype);
}

template <class Problem>
void RunNorm(const Problem& p, bool with_residual) {
  Problem::Run(p.forward());
  Problem::Run(p.backward(with_residual));
}

}  // namespace eyrie
