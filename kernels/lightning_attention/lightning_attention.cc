#include "kernels/lightning_attention/lightning_attention.h"

#include "kernels/dispatch.h"
#include "kernels/lightning_attention/lightning_attention_cpu.h"
#include "kernels/lightning_attention/lightning_attention_cuda.h"

namespace eyrie {
namespace {

// `keys` is k or q, `values` is v or do.
template <class Args>
void CheckInputs(const char* kernel, const Args& args, const Tensor& keys, const Tensor& values) {
  const Shape shape = keys.shape, other = values.shape;
  EYRIE_CHECK(keys.defined() && values.defined() && shape.rank() == 4 && other.rank() == 4 &&
                  shape[1] > 0 && shape[3] > 0 && other[3] > 0,
              kernel, ": keys have shape ", shape.ToString(), ", values ", other.ToString());
  CheckShape(kernel, "values", values, {shape[0], shape[1], shape[2], other[3]});
  CheckShape(kernel, "rate", args.rate, {shape[2]});
  CheckShape(kernel, "positions", args.positions, {shape[0], shape[1]});
  CheckTypes(kernel, keys, keys.dtype, {values});
  CheckTypes(kernel, keys, FullPrecision(keys.dtype), {args.rate});
  CheckTypes(kernel, keys, DType::kI32, {args.positions});
  CheckWorkspace(kernel, keys, args.workspace, LightningAttentionWorkspace(keys, values));
}

Shape StateShape(const Tensor& keys, const Tensor& values) {
  return {keys.dim(0), keys.dim(2), keys.dim(3), values.dim(3)};
}

// The decays of whole chunks: exp(-rate T), or 0 where a document starts.
void ChunkDecays(const Tensor& rate, const Tensor& positions, const Tensor& decay) {
  const KernelScope timed("lightning_attention");
  EYRIE_DISPATCH_CUDA(rate, LightningDecaysCuda(rate, positions, decay));
  DispatchCpu("LightningAttentionSummary", rate,
              [&](auto real) { LightningDecaysCpu<decltype(real)>(rate, positions, decay); });
}

template <class Args>
void CheckSummary(const char* kernel, const Args& args, const Tensor& keys, const Tensor& values) {
  CheckInputs(kernel, args, keys, values);
  CheckShape(kernel, "decay", args.decay, {keys.dim(0), keys.dim(2)});
  CheckShape(kernel, "increment", args.increment, StateShape(keys, values));
  CheckTypes(kernel, keys, FullPrecision(keys.dtype), {args.decay, args.increment});
}

// A token's key and value enter the state, its query reads it and meets the keys of its tile.
KernelWork Work(const LightningPass& pass) {
  const auto rows = static_cast<double>(pass.k.size() / pass.k.dim(3)),
             keys = static_cast<double>(pass.k.dim(3)), values = static_cast<double>(pass.v.dim(3));
  const double reads = keys * values + kLightningTile * (keys + values);
  return {.bytes = BytesOf({pass.q, pass.k, pass.v, pass.o}),
          .products = 2.0 * rows * (keys * values + (pass.o.defined() ? reads : 0.0))};
}

void RunPass(const LightningPass& pass, const Tensor& workspace) {
  const KernelScope timed("lightning_attention", Work(pass));
  EYRIE_DISPATCH_CUDA(pass.k, LightningPassCuda(pass, workspace));
  DispatchCpu("LightningAttention", pass.k,
              [&](auto real) { LightningPassCpu<decltype(real)>(pass); });
}

}  // namespace

int64_t LightningAttentionWorkspace(const Tensor& k, const Tensor& v) {
  if (!IsGpu(k.device)) return 0;
  const int64_t chunks = LightningChunks(k, v).count;
  return chunks == 1 ? 0 : k.dim(0) * k.dim(2) * chunks * k.dim(3) * v.dim(3);
}

void LightningAttentionForward(const LightningAttentionForwardArgs& args) {
  const char* kernel = "LightningAttentionForward";
  CheckInputs(kernel, args, args.k, args.v);
  const Shape state = StateShape(args.k, args.v);
  CheckShape(kernel, "q", args.q, args.k.shape);
  CheckShape(kernel, "o", args.o, args.v.shape);
  CheckOptional(kernel, "s0", args.s0, state);
  CheckOptional(kernel, "s_last", args.s_last, state);
  CheckTypes(kernel, args.k, args.k.dtype, {args.q, args.o});
  CheckTypes(kernel, args.k, FullPrecision(args.k.dtype), {args.s0, args.s_last});
  RunPass({.q = args.q,
           .k = args.k,
           .v = args.v,
           .o = args.o,
           .rate = args.rate,
           .positions = args.positions,
           .entering = args.s0,
           .leaving = args.s_last},
          args.workspace);
}

void LightningAttentionBackward(const LightningAttentionBackwardArgs& args) {
  const char* kernel = "LightningAttentionBackward";
  CheckInputs(kernel, args, args.k, args.v);
  const Shape state = StateShape(args.k, args.v);
  CheckShape(kernel, "q", args.q, args.k.shape);
  CheckShape(kernel, "dout", args.dout, args.v.shape);
  CheckShape(kernel, "dq", args.dq, args.q.shape);
  CheckShape(kernel, "dk", args.dk, args.k.shape);
  CheckShape(kernel, "dv", args.dv, args.v.shape);
  for (const Tensor& tensor : {args.s0, args.ds_last, args.ds0}) {
    CheckOptional(kernel, "a state", tensor, state);
  }
  CheckTypes(kernel, args.k, args.k.dtype, {args.q, args.dout, args.dq, args.dk, args.dv});
  CheckTypes(kernel, args.k, FullPrecision(args.k.dtype), {args.s0, args.ds_last, args.ds0});
  RunPass(QueryGradient(args), args.workspace);
  RunPass(KeyGradient(args), args.workspace);
  RunPass(ValueGradient(args), args.workspace);
}

void LightningAttentionSummary(const LightningAttentionSummaryArgs& args) {
  CheckSummary("LightningAttentionSummary", args, args.k, args.v);
  ChunkDecays(args.rate, args.positions, args.decay);
  RunPass({.k = args.k,
           .v = args.v,
           .rate = args.rate,
           .positions = args.positions,
           .leaving = args.increment},
          args.workspace);
}

void LightningAttentionGradSummary(const LightningAttentionGradSummaryArgs& args) {
  CheckSummary("LightningAttentionGradSummary", args, args.q, args.dout);
  ChunkDecays(args.rate, args.positions, args.decay);
  RunPass({.k = args.q,
           .v = args.dout,
           .rate = args.rate,
           .positions = args.positions,
           .leaving = args.increment,
           .reverse = true},
          args.workspace);
}

}  // namespace eyrie
