#include "kernels/attention/attention.h"

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_tiles.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

// What both directions share; the shapes follow from q and past_k.
struct Shapes {
  Shape queries, keys, past, rows;
};

// A tensor that is there has this element type.
void CheckType(const char* kernel, const Tensor& tensor, DType expected) {
  if (tensor.defined() && tensor.dtype != expected) {
    ThrowFailure(kernel, ": a tensor of shape ", tensor.shape.ToString(), " holds ",
                 Name(tensor.dtype), ", expected ", Name(expected));
  }
}

template <class Args>
Shapes CheckInputs(const char* kernel, const Args& args) {
  EYRIE_CHECK(args.q.defined() && args.q.shape.rank() == 4, kernel, ": q must be [B, T, H, dh]");
  EYRIE_CHECK(args.window >= 0, kernel, ": window ", args.window);
  EYRIE_CHECK(!args.past_k.defined() || args.past_k.shape.rank() == 3, kernel,
              ": past_k must be [B, P, dh]");
  const auto [sequences, tokens, heads, width, past, window] = SizesOf(args);
  const Shapes shapes{.queries = args.q.shape,
                      .keys = {sequences, tokens, width},
                      .past = {sequences, past, width},
                      .rows = {sequences, tokens, heads}};
  CheckShape(kernel, "k", args.k, shapes.keys);
  CheckShape(kernel, "v", args.v, shapes.keys);
  CheckOptional(kernel, "past_k", args.past_k, shapes.past);
  if (past > 0) CheckShape(kernel, "past_v", args.past_v, shapes.past);
  CheckOptional(kernel, "past_v", args.past_v, shapes.past);
  CheckShape(kernel, "positions", args.positions, {sequences, tokens});
  CheckShape(kernel, "o", args.o, shapes.queries);
  CheckShape(kernel, "lse", args.lse, shapes.rows);
  for (const Tensor& tensor : {args.k, args.v, args.past_k, args.past_v, args.o}) {
    CheckType(kernel, tensor, args.q.dtype);
  }
  CheckType(kernel, args.positions, DType::kI32);
  CheckType(kernel, args.lse, FullPrecision(args.q.dtype));
  return shapes;
}

void CheckWorkspace(const char* kernel, const Tensor& workspace, int64_t elements) {
  if (elements == 0) return;
  EYRIE_CHECK(workspace.defined() && workspace.size() >= elements, kernel,
              ": needs a workspace of ", elements, " elements");
  CheckType(kernel, workspace, DType::kF32);
}

template <class Args>
AttentionTiles TilesOf(const Args& args) {
  return TilesFor(args.q.dtype == DType::kBF16, args.q.dim(3));
}

// Of so many products of queries with keys, or of as many multiplications.
template <class Args>
KernelWork Work(const Args& args, int products, std::initializer_list<Tensor> moved) {
  const auto [sequences, tokens, heads, width, past, window] = SizesOf(args);
  return {.bytes = BytesOf(moved),
          .products = 2.0 * products * static_cast<double>(sequences * heads * width) *
                      VisiblePairs(past, tokens, window)};
}

}  // namespace

double VisiblePairs(int64_t before, int64_t tokens, int64_t window) {
  // Token t sees min(t, window) earlier keys and its own.
  const auto up_to = [window](int64_t end) {
    const int64_t growing = window > 0 ? std::min(end, window) : end;
    return static_cast<double>(growing) * static_cast<double>(growing - 1) / 2.0 +
           static_cast<double>(end - growing) * static_cast<double>(window) +
           static_cast<double>(end);
  };
  return up_to(before + tokens) - up_to(before);
}

int64_t AttentionForwardWorkspace(const AttentionForwardArgs& args) {
  if (!IsGpu(args.q.device)) return 0;
  return ForwardWorkspaceSize(SizesOf(args), TilesOf(args).forward);
}

int64_t AttentionBackwardWorkspace(const AttentionBackwardArgs& args) {
  if (!IsGpu(args.q.device)) return 0;
  return BackwardWorkspaceFor(SizesOf(args), TilesOf(args).backward).total;
}

void AttentionForward(const AttentionForwardArgs& args) {
  constexpr const char* kKernel = "attention_forward";
  CheckInputs(kKernel, args);
  CheckWorkspace(kKernel, args.workspace, AttentionForwardWorkspace(args));
  const KernelScope timed("attention", Work(args, 2, {args.q, args.k, args.v, args.o}));
  EYRIE_DISPATCH_CUDA(args.q, AttentionForwardCuda(args));
  DispatchCpu(kKernel, args.q, [&]<class T>(T) { AttentionForwardCpu<T>(args); });
}

void AttentionBackward(const AttentionBackwardArgs& args) {
  constexpr const char* kKernel = "attention_backward";
  const Shapes shapes = CheckInputs(kKernel, args);
  CheckShape(kKernel, "dout", args.dout, shapes.queries);
  CheckShape(kKernel, "dq", args.dq, shapes.queries);
  CheckShape(kKernel, "dk", args.dk, shapes.keys);
  CheckShape(kKernel, "dv", args.dv, shapes.keys);
  CheckOptional(kKernel, "dpast_k", args.dpast_k, shapes.past);
  CheckOptional(kKernel, "dpast_v", args.dpast_v, shapes.past);
  for (const Tensor& tensor : {args.dout, args.dq, args.dk, args.dv, args.dpast_k, args.dpast_v}) {
    CheckType(kKernel, tensor, args.q.dtype);
  }
  CheckWorkspace(kKernel, args.workspace, AttentionBackwardWorkspace(args));
  // Scores, and the gradients of scores, queries, keys and values; the GPU's body computes the
  // first two twice.
  const KernelScope timed(
      "attention", Work(args, IsGpu(args.q.device) ? 7 : 5,
                        {args.q, args.k, args.v, args.o, args.dout, args.dq, args.dk, args.dv}));
  EYRIE_DISPATCH_CUDA(args.q, AttentionBackwardCuda(args));
  DispatchCpu(kKernel, args.q, [&]<class T>(T) { AttentionBackwardCpu<T>(args); });
}

}  // namespace eyrie
