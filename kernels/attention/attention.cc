#include "kernels/attention/attention.h"

#include "kernels/attention/attention_cpu.h"
#include "kernels/dispatch.h"

namespace eyrie {
namespace {

// What both directions share; the shapes follow from q and past_k.
struct Shapes {
  Shape queries, keys, past, rows;
};

template <class Args>
Shapes CheckInputs(const char* kernel, const Args& args) {
  EYRIE_CHECK(args.q.defined() && args.q.shape.rank() == 4, kernel, ": q must be [B, T, H, dh]");
  EYRIE_CHECK(args.window >= 0, kernel, ": window ", args.window);
  const int64_t sequences = args.q.dim(0);
  const int64_t tokens = args.q.dim(1);
  const int64_t heads = args.q.dim(2);
  const int64_t width = args.q.dim(3);
  EYRIE_CHECK(!args.past_k.defined() || args.past_k.shape.rank() == 3, kernel,
              ": past_k must be [B, P, dh]");
  const int64_t past = args.past_k.defined() ? args.past_k.dim(1) : 0;
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
  return shapes;
}

}  // namespace

void AttentionForward(const AttentionForwardArgs& args) {
  constexpr const char* kKernel = "attention_forward";
  CheckInputs(kKernel, args);
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
  DispatchCpu(kKernel, args.q, [&]<class T>(T) { AttentionBackwardCpu<T>(args); });
}

}  // namespace eyrie
