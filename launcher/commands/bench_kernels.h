// What the files of `eyrie bench kernels` share: where a kernel is measured, and the rows of the
// table.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/kernel_times.h"
#include "launcher/commands/bench.h"

namespace eyrie {

// Where a kernel is measured: B sequences, T tokens, C channels.
struct KernelProblem {
  BenchDevice& device;
  int64_t batch, time, channels;

  Shape full() const { return {batch, time, channels}; }
  Tensor Activations(float scale = 1.0f) const { return device.Uniform(full(), scale); }
  Tensor Output(Shape shape) const { return device.Zeros(device.dtype(), shape); }
  Tensor Output() const { return Output(full()); }
  Tensor Row() const { return device.Uniform({channels}); }
  // What keeps full precision beside activations: to be written, and parameters to be read.
  Tensor Full(Shape shape) const { return device.Zeros(device.full(), shape); }
  Tensor FullParameter(Shape shape) const { return device.Uniform(device.full(), shape, 1.0f); }
  // Of as many elements as a kernel asks for.
  Tensor Workspace(int64_t elements) const {
    return elements == 0 ? Tensor{} : device.Zeros(DType::kF32, {elements});
  }
  Tensor Positions() const { return device.Positions(batch, time); }
  // [B, T, H, dh] of the same size.
  Shape Heads(int64_t widest = 128) const {
    int64_t width = std::min(channels, widest);
    while (channels % width != 0 || width % 4 != 0) --width;
    return {batch, time, channels / width, width};
  }
};

// One row of the table.
struct KernelCase {
  std::string direction;
  Shape shape;
  std::function<void()> body;
  double bytes;        // that any implementation must read and write; in place counts twice
  double flops = 0.0;  // of the matrix products; where there are any, these are the bound
};

// Of the kernels whose cases have a file of their own, bench_kernels_<family>.cc.
std::vector<KernelCase> AttentionCases(const KernelProblem& p);
std::vector<KernelCase> BlockMapCases(const KernelProblem& p);
std::vector<KernelCase> CausalConv1dCases(const KernelProblem& p);
std::vector<KernelCase> GatedLayerNormCases(const KernelProblem& p);
std::vector<KernelCase> LayerNormCases(const KernelProblem& p);
std::vector<KernelCase> LightningAttentionCases(const KernelProblem& p);
std::vector<KernelCase> LrpeCases(const KernelProblem& p);
std::vector<KernelCase> MlstmCases(const KernelProblem& p);
std::vector<KernelCase> MlstmGatesCases(const KernelProblem& p);
std::vector<KernelCase> MlstmWideCases(const KernelProblem& p);
std::vector<KernelCase> RgLruCases(const KernelProblem& p);
std::vector<KernelCase> RotaryCases(const KernelProblem& p);
std::vector<KernelCase> SelectiveScanCases(const KernelProblem& p);
std::vector<KernelCase> SlstmCases(const KernelProblem& p);

}  // namespace eyrie
