#include "kernels/elementwise/elementwise.h"

#include "core/round.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise_cpu.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace eyrie {
namespace {

// `vector` is [C] and `rows` is [..., C].
void CheckRows(const char* kernel, const Tensor& vector, const Tensor& rows) {
  EYRIE_CHECK(rows.defined() && rows.shape.rank() >= 1 && rows.dim(-1) > 0, kernel,
              ": rows have shape ", rows.shape.ToString());
  CheckShape(kernel, "row", vector, {rows.dim(-1)});
}

}  // namespace

void Add(const Tensor& a, const Tensor& b, const Tensor& out) {
  const char* kernel = "Add";
  CheckShape(kernel, "a", a, a.shape);
  CheckShape(kernel, "b", b, a.shape);
  CheckShape(kernel, "out", out, a.shape);
  CheckTypes(kernel, a, a.dtype, {b, out});
  const KernelScope timed("elementwise", Moves({a, b, out}));
  EYRIE_DISPATCH_CUDA(a, AddCuda(a, b, out));
  DispatchCpu(kernel, a, [&](auto real) { AddCpu<decltype(real)>(a, b, out); });
}

void BroadcastRows(const Tensor& bias, const Tensor& y) {
  const char* kernel = "BroadcastRows";
  CheckRows(kernel, bias, y);
  CheckTypes(kernel, y, y.dtype, {bias});
  const KernelScope timed("elementwise", Moves({y}));
  EYRIE_DISPATCH_CUDA(y, BroadcastRowsCuda(bias, y));
  DispatchCpu(kernel, y, [&](auto real) { BroadcastRowsCpu<decltype(real)>(bias, y); });
}

void SumRows(const Tensor& dy, const Tensor& dbias, const Tensor& workspace) {
  const char* kernel = "SumRows";
  CheckRows(kernel, dbias, dy);
  CheckTypes(kernel, dy, FullPrecision(dy.dtype), {dbias});
  CheckWorkspace(kernel, dy, workspace, SumRowsWorkspace(dy));
  const KernelScope timed("elementwise", Moves({dy}));
  EYRIE_DISPATCH_CUDA(dy, SumRowsCuda(dy, dbias, workspace));
  DispatchCpu(kernel, dy, [&](auto real) { SumRowsCpu<decltype(real)>(dy, dbias); });
}

int64_t SumRowsWorkspace(const Tensor& dy) {
  if (!IsGpu(dy.device)) return 0;
  const int64_t width = dy.dim(-1), rows = dy.size() / width;
  return CeilDiv(rows, ColumnSumChunk(rows, width)) * width;
}

}  // namespace eyrie
