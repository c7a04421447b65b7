#include "kernels/block_map/block_map.h"

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

}  // namespace

void BlockMapForward(const BlockMapForwardArgs& args) {
  const char* kernel = "BlockMapForward";
  const Shape weights = CheckInputs(kernel, args);
  for (const auto& map : args.maps) {
    CheckShape(kernel, "w", map.w, weights);
    CheckShape(kernel, "y", map.y, args.x.shape);
    CheckTypes(kernel, args.x, args.x.dtype, {map.w, map.y});
  }
  const KernelScope timed("block_map");
  EYRIE_DISPATCH_CUDA(args.x, BlockMapForwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { BlockMapForwardCpu<decltype(real)>(args); });
}

void BlockMapBackward(const BlockMapBackwardArgs& args) {
  const char* kernel = "BlockMapBackward";
  const Shape weights = CheckInputs(kernel, args);
  const bool gated = args.dgates.defined();
  if (gated) {
    EYRIE_CHECK(args.dgates.shape.rank() >= 1, kernel, ": dgates has shape []");
    Shape gates = args.x.shape;
    gates.Set(gates.rank() - 1, args.dgates.dim(-1));
    CheckShape(kernel, "dgates", args.dgates, gates);
    CheckTypes(kernel, args.x, args.x.dtype, {args.dgates});
  }
  for (const auto& map : args.maps) {
    CheckShape(kernel, "w", map.w, weights);
    CheckShape(kernel, "dw", map.dw, weights);
    CheckShape(kernel, "dy", map.dy, args.x.shape);
    EYRIE_CHECK(map.gates_w.defined() == gated && map.dgates_w.defined() == gated, kernel,
                ": gates_w, dgates_w and dgates come together");
    if (gated) {
      const Shape gates_w{args.dgates.dim(-1), args.x.dim(-1)};
      CheckShape(kernel, "gates_w", map.gates_w, gates_w);
      CheckShape(kernel, "dgates_w", map.dgates_w, gates_w);
    }
    CheckTypes(kernel, args.x, args.x.dtype, {map.w, map.dy, map.gates_w});
    CheckTypes(kernel, args.x, FullPrecision(args.x.dtype), {map.dw, map.dgates_w});
  }
  CheckShape(kernel, "dx", args.dx, args.x.shape);
  CheckTypes(kernel, args.x, args.x.dtype, {args.dx});
  CheckWorkspace(kernel, args.x, args.workspace,
                 BlockMapBackwardWorkspace(args.x, static_cast<int64_t>(args.maps.size()),
                                           gated ? args.dgates.dim(-1) : 0));
  const KernelScope timed("block_map");
  EYRIE_DISPATCH_CUDA(args.x, BlockMapBackwardCuda(args));
  DispatchCpu(kernel, args.x, [&](auto real) { BlockMapBackwardCpu<decltype(real)>(args); });
}

int64_t BlockMapBackwardWorkspace(const Tensor& x, int64_t maps, int64_t gates) {
  if (!IsGpu(x.device)) return 0;
  const int64_t width = x.dim(-1), rows = x.size() / width;
  const int64_t chunks = CeilDiv(rows, ColumnSumChunk(rows, width));
  return (chunks + 1) * BlockMapSums(width, maps, gates);
}

}  // namespace eyrie
