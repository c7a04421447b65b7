#include "kernels/adamw/adamw.h"

#include "kernels/adamw/adamw_cpu.h"
#include "kernels/adamw/adamw_cuda.h"
#include "kernels/dispatch.h"

namespace eyrie {

void AdamW(const AdamWArgs& args) {
  constexpr const char* kKernel = "adamw";
  EYRIE_CHECK(args.param.defined(), kKernel, ": param is absent");
  CheckShape(kKernel, "grad", args.grad, args.param.shape);
  CheckShape(kKernel, "m", args.m, args.param.shape);
  CheckShape(kKernel, "v", args.v, args.param.shape);
  CheckOptional(kKernel, "copy", args.copy, args.param.shape);
  EYRIE_CHECK(args.step >= 1, kKernel, ": step ", args.step);
  CheckTypes(kKernel, args.param, args.param.dtype, {args.grad});
  CheckTypes(kKernel, args.param, args.m.dtype, {args.m, args.v});
  if (args.decays.defined()) {
    CheckShape(kKernel, "decays", args.decays, {DecayWords(args.param.size())});
    CheckTypes(kKernel, args.param, DType::kI32, {args.decays});
  }
  if (args.copy.defined()) CheckTypes(kKernel, args.param, args.copy.dtype, {args.copy});
  const KernelScope timed("adamw", Moves({args.param, args.param, args.grad, args.m, args.m, args.v,
                                          args.v, args.copy}));
  EYRIE_DISPATCH_CUDA(args.param, AdamWCuda(args));
  DispatchCpu(kKernel, args.param, [&]<class T>(T) { AdamWCpu<T>(args); });
}

void SumOfSquares(const Tensor& values, const Tensor& sum, const Tensor& workspace) {
  constexpr const char* kKernel = "sum_of_squares";
  EYRIE_CHECK(values.defined(), kKernel, ": values are absent");
  CheckShape(kKernel, "sum", sum, {1});
  CheckTypes(kKernel, values, DType::kF64, {sum});
  CheckWorkspace(kKernel, values, workspace, SumOfSquaresWorkspace(values));
  const KernelScope timed("adamw", Moves({values}));
  EYRIE_DISPATCH_CUDA(values, SumOfSquaresCuda(values, sum, workspace));
  DispatchCpu(kKernel, values,
              [&]<class T>(T) { *sum.data<double>() += SumOfSquaresCpu<T>(values); });
}

int64_t SumOfSquaresWorkspace(const Tensor& values) {
  return IsGpu(values.device) ? 2 * SumBlocks(values.size()) : 0;
}

}  // namespace eyrie
