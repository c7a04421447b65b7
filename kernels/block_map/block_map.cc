#include "kernels/block_map/block_map.h"

#include "core/round.h"
#include "kernels/block_map/block_map_cpu.h"
#include "kernels/block_map/block_map_cuda.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

// Of x and the number of maps. Returns the shape of the weights.
template <class Args>
Shape CheckInputs(const char* kernel, const Args& args) {
  const Tensor& x = args.x;
  EYRIE_CHECK(x.defined() && x.shape.rank() >= 1 && x.dim(-1) % kBlockMapWidth == 0, kernel,
              ": x has shape ", x.shape.ToString());
  EYRIE_CHECK(!args.maps.empty() && static_cast<int64_t>(args.maps.size()) <= kMostBlockMaps,
              kernel, ": ", args.maps.size(), " maps");
  return {x.dim(-1) / kBlockMapWidth, kBlockMapWidth, kBlockMapWidth};
}

// Of gates [.., G] beside x, of `dtype`. Returns G, or 0 if there are none.
int64_t CheckGates(const char* kernel, const char* argument, const Tensor& x, const Tensor& gates,
                   DType dtype) {
  if (!gates.defined()) return 0;
  EYRIE_CHECK(gates.shape.rank() >= 1 && gates.dim(-1) > 0, kernel, ": ", argument, " has shape ",
              gates.shape.ToString());
  Shape shape = x.shape;
  shape.Set(shape.rank() - 1, gates.dim(-1));
  CheckShape(kernel, argument, gates, shape);
  CheckTypes(kernel, x, dtype, {gates});
  return gates.dim(-1);
}

// A weight of gates, or its gradient, comes where they do.
void CheckGatesWeight(const char* kernel, const char* argument, const Tensor& weight, int64_t gates,
                      int64_t channels) {
  EYRIE_CHECK(weight.defined() == (gates > 0), kernel, ": ", argument, " and gates come together");
  if (gates > 0) CheckShape(kernel, argument, weight, {gates, channels});
}

}  // namespace

void BlockMapForward(const BlockMapForwardArgs& args) {
  const char* kernel = "BlockMapForward";
  const Shape weights = CheckInputs(kernel, args);
  const int64_t gates =
      CheckGates(kernel, "gates", args.x, args.gates, FullPrecision(args.x.dtype));
  for (const auto& map : args.maps) {
    CheckShape(kernel, "w", map.w, weights);
    CheckShape(kernel, "y", map.y, args.x.shape);
    CheckGatesWeight(kernel, "gates_w", map.gates_w, gates, args.x.dim(-1));
    CheckTypes(kernel, args.x, args.x.dtype, {map.w, map.y, map.gates_w});
  }
  CheckWorkspace(kernel, args.x, args.workspace, BlockMapForwardWorkspace(args.x, gates));
  KernelWork work = Moves({args.x, args.gates});
  for (const auto& map : args.maps) work.Add(Moves({map.y}));
  const KernelScope timed("block_map", work);
  EYRIE_DISPATCH_CUDA(args.x, BlockMapForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { BlockMapForwardCpu<decltype(real)>(args); });
}

int64_t BlockMapForwardWorkspace(const Tensor& x, int64_t gates) {
  if (!IsGpu(x.device)) return 0;
  const int64_t width = x.dim(-1), rows = x.size() / width;
  return CeilDiv(width, kBlockMapGateColumns) * rows * gates;
}

void BlockMapBackward(const BlockMapBackwardArgs& args) {
  const char* kernel = "BlockMapBackward";
  const Shape weights = CheckInputs(kernel, args);
  const int64_t gates = CheckGates(kernel, "dgates", args.x, args.dgates, args.x.dtype);
  for (const auto& map : args.maps) {
    CheckShape(kernel, "w", map.w, weights);
    CheckShape(kernel, "dw", map.dw, weights);
    CheckShape(kernel, "dy", map.dy, args.x.shape);
    CheckGatesWeight(kernel, "gates_w", map.gates_w, gates, args.x.dim(-1));
    CheckGatesWeight(kernel, "dgates_w", map.dgates_w, gates, args.x.dim(-1));
    CheckTypes(kernel, args.x, args.x.dtype, {map.w, map.dy, map.gates_w});
    CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {map.dw, map.dgates_w});
  }
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dx});
  CheckWorkspace(kernel, args.x, args.workspace,
                 BlockMapBackwardWorkspace(args.x, static_cast<int64_t>(args.maps.size()), gates));
  KernelWork work = Moves({args.x, args.dgates, args.dx});
  for (const auto& map : args.maps) work.Add(Moves({map.dy}));
  const KernelScope timed("block_map", work);
  EYRIE_DISPATCH_CUDA(args.x, BlockMapBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { BlockMapBackwardCpu<decltype(real)>(args); });
}

int64_t BlockMapBackwardWorkspace(const Tensor& x, int64_t maps, int64_t gates) {
  if (!IsGpu(x.device)) return 0;
  const int64_t width = x.dim(-1), rows = x.size() / width;
  const int64_t chunks = CeilDiv(rows, BlockMapBackwardChunk(rows, width));
  return (chunks + 1) * BlockMapSums(width, maps, gates);
}

}  // namespace eyrie
