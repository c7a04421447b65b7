#include "kernels/block_map/block_map.h"

#include "kernels/block_map/block_map_cpu.h"
#include "kernels/block_map/block_map_cuda.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

// `y` is y or dy, and `w` w or dw.
void CheckInputs(const char* kernel, const Tensor& x, const Tensor& y, const Tensor& w) {
  EYRIE_CHECK(x.defined() && x.shape.rank() >= 1 && x.dim(-1) % kBlockMapWidth == 0, kernel,
              ": x has shape ", x.shape.ToString());
  CheckShape(kernel, "y", y, x.shape);
  CheckShape(kernel, "w", w, {x.dim(-1) / kBlockMapWidth, kBlockMapWidth, kBlockMapWidth});
  CheckTypes(kernel, x, x.dtype, {y});
}

}  // namespace

void BlockMap(const BlockMapArgs& args) {
  const char* kernel = "BlockMap";
  CheckInputs(kernel, args.x, args.y, args.w);
  CheckTypes(kernel, args.x, args.x.dtype, {args.w});
  const KernelScope timed("block_map");
  EYRIE_DISPATCH_CUDA(args.x, BlockMapCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { BlockMapCpu<decltype(real)>(args); });
}

void BlockMapWeightGrad(const BlockMapWeightGradArgs& args) {
  const char* kernel = "BlockMapWeightGrad";
  CheckInputs(kernel, args.x, args.dy, args.dw);
  CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {args.dw});
  CheckWorkspace(kernel, args.x, args.workspace, BlockMapWorkspace(args.x));
  const KernelScope timed("block_map");
  EYRIE_DISPATCH_CUDA(args.x, BlockMapWeightGradCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { BlockMapWeightGradCpu<decltype(real)>(args); });
}

int64_t BlockMapWorkspace(const Tensor& x) {
  if (!IsGpu(x.device)) return 0;
  const int64_t width = x.dim(-1), rows = x.size() / width;
  return CeilDiv(rows, ColumnSumChunk(rows, width)) * width * kBlockMapWidth;
}

}  // namespace eyrie
