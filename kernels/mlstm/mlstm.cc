#include "kernels/mlstm/mlstm.h"

#include "kernels/dispatch.h"
#include "kernels/mlstm/mlstm_cpu.h"
#include "kernels/mlstm/mlstm_cuda.h"
#include "kernels/mlstm/mlstm_plan.h"

namespace eyrie {
namespace {

// What the four kernels have in common: `keys` is q or k, `values` v or h.
template <class Args>
void CheckInputs(const char* kernel, const Args& args, const Tensor& keys, const Tensor& values) {
  const Shape shape = keys.shape, other = values.shape;
  EYRIE_CHECK(keys.defined() && values.defined() && shape.rank() == 4 && other.rank() == 4 &&
                  shape[1] > 0 && shape[3] > 0 && other[3] > 0,
              kernel, ": keys have shape ", shape.ToString(), ", values ", other.ToString());
  CheckShape(kernel, "values", values, {shape[0], shape[1], shape[2], other[3]});
  CheckShape(kernel, "positions", args.positions, {shape[0], shape[1]});
  CheckTypes(kernel, keys, keys.dtype, {values});
  CheckTypes(kernel, keys, DType::kI32, {args.positions});
  const MlstmOptions& options = args.options;
  EYRIE_CHECK(options.chunk >= 0 && options.epsilon >= 0, kernel, ": chunk ", options.chunk,
              ", epsilon ", options.epsilon);
  EYRIE_CHECK(options.normalised || !options.stabilised, kernel,
              ": only a normalised memory can be stabilised");
  CheckWorkspace(kernel, keys, args.workspace, MlstmWorkspace(keys, values, options));
}

// Of full precision, [B, T, H] or [B, H].
void CheckOverTokens(const char* kernel, const Tensor& keys, std::initializer_list<Tensor> gates) {
  for (const Tensor& gate : gates) {
    CheckShape(kernel, "a tensor of gates", gate, {keys.dim(0), keys.dim(1), keys.dim(2)});
  }
  CheckTypes(kernel, keys, FullPrecision(keys.dtype), gates);
}
void CheckOverHeads(const char* kernel, const Tensor& keys, std::initializer_list<Tensor> given) {
  for (const Tensor& tensor : given) {
    CheckOptional(kernel, "a tensor of heads", tensor, {keys.dim(0), keys.dim(2)});
  }
  CheckTypes(kernel, keys, FullPrecision(keys.dtype), given);
}

// A state is given whole or not at all; that of a gradient has no m.
void CheckState(const char* kernel, const Tensor& keys, const Tensor& values,
                const MlstmState& state, bool has_m = true) {
  const Shape c{keys.dim(0), keys.dim(2), keys.dim(3), values.dim(3)};
  const bool given = state.c.defined();
  EYRIE_CHECK(state.n.defined() == given && state.m.defined() == (given && has_m), kernel,
              ": a state lacks a part, or has one too many");
  CheckOptional(kernel, "c of a state", state.c, c);
  CheckOptional(kernel, "n of a state", state.n, {c[0], c[1], c[2]});
  CheckTypes(kernel, keys, FullPrecision(keys.dtype), {state.c, state.n});
  CheckOverHeads(kernel, keys, {state.m});
}

// `states` are those that may enter the sequence.
template <class Args>
void CheckMemories(const char* kernel, const Args& args, std::initializer_list<MlstmState> states) {
  for (const MlstmState& state : states) {
    EYRIE_CHECK(!args.memories.defined() || !state.c.defined(), kernel,
                ": memories of a sequence that a state enters");
  }
  CheckOptional(kernel, "memories", args.memories, {MlstmMemories(args.q, args.v, args.options)});
  CheckTypes(kernel, args.q, DType::kF32, {args.memories});
}

// Of so many products of every token with a memory, and of tokens with those of their tile or chunk
// over the width of keys and over that of values.
KernelWork Work(const Tensor& q, const Tensor& v, int memories, int over_keys, int over_values,
                std::initializer_list<Tensor> moved) {
  const auto rows = static_cast<double>(q.size() / q.dim(3)), keys = static_cast<double>(q.dim(3)),
             values = static_cast<double>(v.dim(3));
  // Of a chunk half of the pairs count, of a tile all are computed.
  const double others =
      MlstmHasWideHeads(q, v) ? kMaxMlstmChunkTiles * kMlstmTile / 2.0 : kMlstmTile;
  return {
      .bytes = BytesOf(moved),
      .products = 2.0 * rows *
                  (memories * keys * values + others * (over_keys * keys + over_values * values))};
}

}  // namespace

int64_t MlstmWorkspace(const Tensor& q, const Tensor& v, const MlstmOptions& options) {
  if (!IsGpu(q.device)) return 0;
  const auto total = [&](bool by_chunks) {
    const MlstmLayout sizes = MlstmLayoutOf(q, v, nullptr, options, by_chunks);
    return MlstmScratch(sizes, q.dtype == DType::kBF16, by_chunks, nullptr).total;
  };
  return MlstmHasWideHeads(q, v) ? std::max(total(false), total(true)) : total(false);
}

int64_t MlstmMemories(const Tensor& q, const Tensor& v, const MlstmOptions& options) {
  if (!IsGpu(q.device) || !MlstmHasWideHeads(q, v) || q.dim(1) == 1) return 0;
  const MlstmLayout sizes = MlstmLayoutOf(q, v, nullptr, options, /*by_chunks=*/true);
  return MlstmChunkMemories(sizes.OnItsOwn(), nullptr).total;
}

void MlstmForward(const MlstmForwardArgs& args) {
  const char* kernel = "MlstmForward";
  CheckInputs(kernel, args, args.k, args.v);
  CheckShape(kernel, "q", args.q, args.k.shape);
  CheckShape(kernel, "h", args.h, args.v.shape);
  CheckTypes(kernel, args.k, args.k.dtype, {args.q, args.h});
  CheckOverTokens(kernel, args.k, {args.log_i, args.log_f, args.maximum, args.normaliser});
  CheckState(kernel, args.k, args.v, args.before);
  CheckState(kernel, args.k, args.v, args.after);
  CheckMemories(kernel, args, {args.before});
  // The memory is made and read.
  const KernelScope timed(
      "mlstm", Work(args.q, args.v, 2, 1, 1, {args.q, args.k, args.v, args.h, args.memories}));
  EYRIE_DISPATCH_CUDA(args.k, MlstmForwardCuda(args));
  DispatchCpu(kernel, args.k, [&](auto real) { MlstmForwardCpu<decltype(real)>(args); });
}

void MlstmBackward(const MlstmBackwardArgs& args) {
  const char* kernel = "MlstmBackward";
  CheckInputs(kernel, args, args.k, args.v);
  for (const Tensor& tensor : {args.q, args.dq, args.dk}) {
    CheckShape(kernel, "q, dq or dk", tensor, args.k.shape);
  }
  for (const Tensor& tensor : {args.h, args.dh, args.dv}) {
    CheckShape(kernel, "h, dh or dv", tensor, args.v.shape);
  }
  CheckTypes(kernel, args.k, args.k.dtype, {args.q, args.h, args.dh, args.dq, args.dk, args.dv});
  CheckOverTokens(
      kernel, args.k,
      {args.log_i, args.log_f, args.maximum, args.normaliser, args.dlog_i, args.dlog_f});
  CheckState(kernel, args.k, args.v, args.before);
  CheckState(kernel, args.k, args.v, args.dafter, false);
  CheckState(kernel, args.k, args.v, args.dbefore, false);
  CheckOverHeads(kernel, args.k, {args.after_m});
  EYRIE_CHECK(args.after_m.defined() || !args.dafter.c.defined(), kernel,
              ": dafter without after_m");
  if (args.h_dh.defined()) CheckOverTokens(kernel, args.k, {args.h_dh});
  CheckMemories(kernel, args, {args.before, args.dafter});
  // Its gradient is made, those of q, k and v are read from the two; perhaps it is made again.
  const KernelScope timed("mlstm", Work(args.q, args.v, args.memories.defined() ? 4 : 5, 3, 2,
                                        {args.q, args.k, args.v, args.h, args.dh, args.dq, args.dk,
                                         args.dv, args.memories, args.memories}));
  EYRIE_DISPATCH_CUDA(args.k, MlstmBackwardCuda(args));
  DispatchCpu(kernel, args.k, [&](auto real) { MlstmBackwardCpu<decltype(real)>(args); });
}

void MlstmSummary(const MlstmSummaryArgs& args) {
  const char* kernel = "MlstmSummary";
  CheckInputs(kernel, args, args.k, args.v);
  CheckOverTokens(kernel, args.k, {args.log_i, args.log_f});
  CheckShape(kernel, "log_decay", args.log_decay, {args.k.dim(0), args.k.dim(2)});
  CheckOverHeads(kernel, args.k, {args.log_decay});
  EYRIE_CHECK(args.increment.c.defined(), kernel, ": no increment");
  CheckState(kernel, args.k, args.v, args.increment);
  const KernelScope timed("mlstm",
                          Work(args.k, args.v, 1, 0, 0, {args.k, args.v, args.increment.c}));
  EYRIE_DISPATCH_CUDA(args.k, MlstmSummaryCuda(args));
  DispatchCpu(kernel, args.k, [&](auto real) { MlstmSummaryCpu<decltype(real)>(args); });
}

void MlstmGradSummary(const MlstmGradSummaryArgs& args) {
  const char* kernel = "MlstmGradSummary";
  CheckInputs(kernel, args, args.q, args.h);
  CheckShape(kernel, "dh", args.dh, args.h.shape);
  CheckTypes(kernel, args.q, args.q.dtype, {args.dh});
  CheckOverTokens(kernel, args.q, {args.log_f, args.maximum, args.normaliser});
  for (const Tensor& tensor : {args.after_m, args.decay}) {
    CheckShape(kernel, "after_m or decay", tensor, {args.q.dim(0), args.q.dim(2)});
  }
  CheckOverHeads(kernel, args.q, {args.before_m, args.after_m, args.decay});
  if (args.h_dh.defined()) CheckOverTokens(kernel, args.q, {args.h_dh});
  EYRIE_CHECK(args.increment_c.defined(), kernel, ": no increment");
  CheckState(kernel, args.q, args.h, {.c = args.increment_c, .n = args.increment_n}, false);
  const KernelScope timed(
      "mlstm", Work(args.q, args.h, 1, 0, 0, {args.q, args.h, args.dh, args.increment_c}));
  EYRIE_DISPATCH_CUDA(args.q, MlstmGradSummaryCuda(args));
  DispatchCpu(kernel, args.q, [&](auto real) { MlstmGradSummaryCpu<decltype(real)>(args); });
}

}  // namespace eyrie
