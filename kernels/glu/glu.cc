#include "kernels/glu/glu.h"

#include "core/round.h"
#include "kernels/cuda_partition.h"
#include "kernels/dispatch.h"
#include "kernels/glu/glu_cpu.h"
#include "kernels/glu/glu_cuda.h"

namespace eyrie {
namespace {

template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  CheckShape(kernel, "gate", args.gate, args.gate.shape);
  CheckShape(kernel, "value", args.value, args.gate.shape);
  CheckTypes(kernel, args.gate, args.gate.dtype, {args.value});
}

}  // namespace

void GluForward(const GluForwardArgs& args) {
  const char* kernel = "GluForward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "out", args.out, args.gate.shape);
  CheckTypes(kernel, args.gate, args.gate.dtype, {args.out});
  const KernelScope timed("glu", Moves({args.gate, args.value, args.out}));
  EYRIE_DISPATCH_CUDA(args.gate, GluForwardCuda(args));
  DispatchCpu(kernel, args.gate, [&](auto real) { GluForwardCpu<decltype(real)>(args); });
}

void GluBackward(const GluBackwardArgs& args) {
  const char* kernel = "GluBackward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "dout", args.dout, args.gate.shape);
  CheckShape(kernel, "dgate", args.dgate, args.gate.shape);
  CheckShape(kernel, "dvalue", args.dvalue, args.gate.shape);
  CheckTypes(kernel, args.gate, args.gate.dtype, {args.dout, args.dgate, args.dvalue});
  if (args.dgate_sum.defined() || args.dvalue_sum.defined()) {
    EYRIE_CHECK(args.gate.shape.rank() >= 1 && args.gate.dim(-1) > 0, kernel,
                ": gate has no rows to sum over: its shape is ", args.gate.shape.ToString());
    CheckOptional(kernel, "dgate_sum", args.dgate_sum, {args.gate.dim(-1)});
    CheckOptional(kernel, "dvalue_sum", args.dvalue_sum, {args.gate.dim(-1)});
    CheckTypes(kernel, args.gate, FullPrecision(args.gate.dtype),
               {args.dgate_sum, args.dvalue_sum});
    CheckWorkspace(kernel, args.gate, args.workspace, GluBackwardWorkspace(args));
  }
  const KernelScope timed("glu",
                          Moves({args.gate, args.value, args.dout, args.dgate, args.dvalue}));
  EYRIE_DISPATCH_CUDA(args.gate, GluBackwardCuda(args));
  DispatchCpu(kernel, args.gate, [&](auto real) { GluBackwardCpu<decltype(real)>(args); });
}

int64_t GluBackwardWorkspace(const GluBackwardArgs& args) {
  const int64_t sums = (args.dgate_sum.defined() ? 1 : 0) + (args.dvalue_sum.defined() ? 1 : 0);
  if (sums == 0 || !IsGpu(args.gate.device)) return 0;
  const int64_t width = args.gate.dim(-1), rows = args.gate.size() / width;
  return sums * CeilDiv(rows, ColumnSumChunk(rows, width)) * width;
}

}  // namespace eyrie
