#include "kernels/gated_norm/gated_norm.h"

#include "kernels/dispatch.h"
#include "kernels/gated_norm/gated_norm_cpu.h"
#include "kernels/gated_norm/gated_norm_cuda.h"

namespace eyrie {
namespace {

// Of a row's sums for the rows of x.
void CheckSums(const char* kernel, const char* name, const Tensor& x, const Tensor& sums) {
  EYRIE_CHECK(x.defined() && x.shape.rank() >= 1 && x.dim(-1) > 0, kernel, ": rows have shape ",
              x.shape.ToString());
  EYRIE_CHECK(sums.defined() && sums.size() == x.size() / x.dim(-1), kernel, ": ", name,
              " has shape ", sums.shape.ToString());
  CheckTypes(kernel, x, FullPrecision(x.dtype), {sums});
}

template <class Args>
void CheckInputs(const char* kernel, const Args& args) {
  CheckSums(kernel, "squares", args.x, args.squares);
  CheckShape(kernel, "gate", args.gate, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.gate});
  EYRIE_CHECK(args.width >= args.x.dim(-1), kernel, ": rows of ", args.width,
              " elements, of which ", args.x.dim(-1), " are here");
}

}  // namespace

void RowProducts(const RowProductsArgs& args) {
  const char* kernel = "RowProducts";
  CheckSums(kernel, "sums", args.a, args.sums);
  CheckShape(kernel, "b", args.b, args.a.shape);
  CheckOptional(kernel, "c", args.c, args.a.shape);
  CheckTypes(kernel, args.a, args.a.dtype, {args.b, args.c});
  const KernelScope timed("gated_norm", Moves({args.a, args.b, args.c}));
  EYRIE_DISPATCH_CUDA(args.a, RowProductsCuda(args));
  DispatchCpu(kernel, args.a, [&](auto real) { RowProductsCpu<decltype(real)>(args); });
}

void GatedNormForward(const GatedNormForwardArgs& args) {
  const char* kernel = "GatedNormForward";
  CheckInputs(kernel, args);
  CheckShape(kernel, "out", args.out, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.out});
  const KernelScope timed("gated_norm", Moves({args.x, args.gate, args.out}));
  EYRIE_DISPATCH_CUDA(args.x, GatedNormForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { GatedNormForwardCpu<decltype(real)>(args); });
}

void GatedNormBackward(const GatedNormBackwardArgs& args) {
  const char* kernel = "GatedNormBackward";
  CheckInputs(kernel, args);
  CheckSums(kernel, "along", args.x, args.along);
  CheckShape(kernel, "dout", args.dout, args.x.shape);
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckShape(kernel, "dgate", args.dgate, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dout, args.dx, args.dgate});
  const KernelScope timed("gated_norm", Moves({args.x, args.gate, args.dout, args.dx, args.dgate}));
  EYRIE_DISPATCH_CUDA(args.x, GatedNormBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { GatedNormBackwardCpu<decltype(real)>(args); });
}

}  // namespace eyrie
