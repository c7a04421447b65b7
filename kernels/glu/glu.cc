#include "kernels/glu/glu.h"

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
  const KernelScope timed("glu");
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
  const KernelScope timed("glu");
  EYRIE_DISPATCH_CUDA(args.gate, GluBackwardCuda(args));
  DispatchCpu(kernel, args.gate, [&](auto real) { GluBackwardCpu<decltype(real)>(args); });
}

}  // namespace eyrie
