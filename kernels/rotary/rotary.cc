#include "kernels/rotary/rotary.h"

#include "kernels/dispatch.h"
#include "kernels/rotary/rotary_cpu.h"
#include "kernels/rotary/rotary_cuda.h"

namespace eyrie {

void Rotary(const RotaryArgs& args) {
  const char* kernel = "Rotary";
  const Shape shape = args.x.shape;
  EYRIE_CHECK(shape.rank() == 4 && shape[3] % 4 == 0, kernel, ": x has shape ", shape.ToString());
  EYRIE_CHECK(args.base > 0, kernel, ": base is ", args.base);
  CheckShape(kernel, "x", args.x, shape);
  CheckShape(kernel, "positions", args.positions, {shape[0], shape[1]});
  CheckTypes(kernel, args.x, DType::kI32, {args.positions});
  const KernelScope timed("rotary", Moves({args.x, args.x}));
  EYRIE_DISPATCH_CUDA(args.x, RotaryCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { RotaryCpu<decltype(real)>(args); });
}

}  // namespace eyrie
