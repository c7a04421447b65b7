// The mLSTM on the GPU: what its passes consist of, and in which order (mlstm_kernels.cuh).
#include "kernels/mlstm/mlstm_chunks.h"
#include "kernels/mlstm/mlstm_cuda.h"
#include "kernels/mlstm/mlstm_kernels.cuh"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

template <class T>
constexpr bool kTensorCores = std::is_same_v<T, Bf16>;

// Whether queries and values like these go by products over chunks (mlstm_chunks.h).
bool ByChunks(const Tensor& q, const Tensor& v) {
  return MlstmHasWideHeads(q, v) && MlstmRunsWgmma();
}

// Of arguments of the forward or the backward pass.
template <class Args>
MlstmLayout LayoutOf(const Args& args, bool by_chunks) {
  const MlstmLayout sizes = MlstmLayoutOf(args.q, args.v, args.positions.template data<int32_t>(),
                                          args.options, by_chunks);
  return args.memories.defined() ? sizes.OnItsOwn() : sizes;
}

template <class T>
void CheckRows(const char* kernel, const MlstmLayout& sizes,
               std::initializer_list<Tensor> tensors) {
  EYRIE_CHECK(sizes.keys <= kMaxMlstmCudaWidth && sizes.values <= kMaxMlstmCudaWidth, kernel,
              ": heads of ", sizes.keys, " keys and ", sizes.values, " values, at most ",
              kMaxMlstmCudaWidth);
  if constexpr (kTensorCores<T>) {
    EYRIE_CHECK(sizes.keys % kMlstmBf16Multiple == 0 && sizes.values % kMlstmBf16Multiple == 0,
                kernel, ": heads of ", sizes.keys, " keys and ", sizes.values,
                " values, not multiples of ", kMlstmBf16Multiple);
    for (const Tensor& tensor : tensors) {
      EYRIE_CHECK(reinterpret_cast<uintptr_t>(tensor.raw) % 16 == 0, kernel,
                  ": a tensor is not aligned to 16 bytes");
    }
  }
}

// Takes a state through all chunks: `pass` has what enters the first and leaves the last of them.
template <class T>
void RunPass(const MlstmLayout& sizes, const MlstmScratch& scratch, MlstmPass<T> pass) {
  pass.log_decay = scratch.vectors.log_decay;
  pass.decay_whole = scratch.vectors.column;
  pass.decay_part = scratch.vectors.row;
  pass.partial = scratch.partial;
  const auto run = [&](const MlstmPass<T>& part) {
    if constexpr (kTensorCores<T>) {
      MlstmFitsWgmma(part) ? MlstmPassWgmma(sizes, part) : MlstmPassMma(sizes, part);
    } else {
      MlstmPassPlain(sizes, part);
    }
  };
  if (sizes.chunks > 1) {
    const bool extra = pass.extra_seen != nullptr;
    MlstmPass<T> increments = pass;
    increments.o = nullptr;
    increments.entering = nullptr;
    increments.entering_extra = nullptr;
    increments.restarts = {};
    increments.leaving = scratch.states;
    increments.leaving_extra = extra ? scratch.extra_states : nullptr;
    run(increments);
    const auto scan = [&](float* states, int size, const float* entering, float* leaving) {
      ScanStates(sizes,
                 {.states = states,
                  .tiles = sizes.chunk_tiles,
                  .size = size,
                  .entering = entering,
                  .leaving = leaving,
                  .reverse = pass.reverse},
                 scratch.vectors.log_decay);
    };
    scan(scratch.states, pass.keys * pass.values, pass.entering, pass.leaving);
    if (extra) scan(scratch.extra_states, pass.values, pass.entering_extra, pass.leaving_extra);
    pass.entering = scratch.states;
    pass.entering_extra = scratch.extra_states;
    pass.leaving = nullptr;
    pass.leaving_extra = nullptr;
    if (pass.o == nullptr) return;
  }
  run(pass);
}

// The passes that go from keys to values or their gradients, but for what enters and leaves: a
// state lies in memory as [dk, dv].
template <class T>
MlstmPass<T> PassOverKeys(const MlstmLayout& sizes) {
  return {
      .keys = sizes.keys, .values = sizes.values, .key_stride = sizes.values, .value_stride = 1};
}
// Those from values to keys, with the normaliser as a further value.
template <class T>
MlstmPass<T> PassOverValues(const MlstmLayout& sizes) {
  return {
      .keys = sizes.values, .values = sizes.keys, .key_stride = 1, .value_stride = sizes.values};
}

template <class T>
void RunStep(const MlstmForwardArgs& args, const MlstmLayout& sizes, const MlstmScratch& scratch) {
  MlstmStepCuda<T>(sizes, {.q = args.q.data<T>(),
                           .k = args.k.data<T>(),
                           .v = args.v.data<T>(),
                           .h = args.h.data<T>(),
                           .log_i = args.log_i.data<float>(),
                           .log_f = args.log_f.data<float>(),
                           .c = args.before.c.data<float>(),
                           .n = args.before.n.data<float>(),
                           .m = args.before.m.data<float>(),
                           .c_after = args.after.c.data<float>(),
                           .n_after = args.after.n.data<float>(),
                           .m_after = args.after.m.data<float>(),
                           .maximum = args.maximum.data<float>(),
                           .normaliser = args.normaliser.data<float>(),
                           .factors = scratch.step,
                           .stabilised = args.options.stabilised,
                           .normalised = args.options.normalised,
                           .epsilon = static_cast<float>(args.options.epsilon)});
}

template <class T>
void RunForward(const MlstmForwardArgs& args) {
  const bool by_chunks = ByChunks(args.q, args.v);
  const MlstmLayout sizes = LayoutOf(args, by_chunks);
  CheckRows<T>("MlstmForward", sizes, {args.q, args.k, args.v, args.h});
  const MlstmScratch scratch(sizes, kTensorCores<T>, by_chunks, args.workspace.data<float>(),
                             args.memories.data<float>());
  if (sizes.tokens == 1) return RunStep<T>(args, sizes, scratch);
  const MlstmVectors& vectors = scratch.vectors;
  auto* w = static_cast<Bf16*>(scratch.w);
  const T *q = args.q.data<T>(), *k = args.k.data<T>();
  float* normaliser = args.normaliser.data<float>();
  const float* n_before = args.before.n.data<float>();
  float* n_after = args.after.n.data<float>();
  MlstmWeights(sizes,
               {.log_i = args.log_i.data<float>(),
                .log_f = args.log_f.data<float>(),
                .before_m = args.before.m.data<float>(),
                .maximum = args.maximum.data<float>(),
                .final_m = args.after.m.data<float>(),
                .stabilised = args.options.stabilised,
                .tokenwise = !kTensorCores<T>},
               vectors);
  if (by_chunks) return MlstmForwardByChunks(sizes, scratch, args);
  const MlstmDenominators<T> denominators{.normaliser = normaliser,
                                          .maximum = args.maximum.data<float>(),
                                          .normalised = args.options.normalised,
                                          .epsilon = static_cast<float>(args.options.epsilon)};
  if constexpr (kTensorCores<T>) {
    MlstmTileScores(
        sizes, vectors,
        {.q = q, .k = k, .w = w, .row_sums = normaliser, .increments = scratch.normaliser_states});
    ScanStates(sizes,
               {.states = scratch.normaliser_states,
                .tiles = 1,
                .size = sizes.keys,
                .entering = n_before,
                .leaving = n_after},
               vectors.log_decay);
    AddStatesToNormalisers(sizes, q,
                           {.states = scratch.normaliser_states,
                            .per_head = sizes.tiles,
                            .tiles = 1,
                            .log_decay = vectors.log_decay},
                           vectors.before, denominators, normaliser, vectors.inverse_b);
  } else {
    RunPass<T>(sizes, scratch,
               {.q = q,
                .k = k,
                .o = normaliser,
                .keys = sizes.keys,
                .values = 1,
                .sees = vectors.before,
                .seen = vectors.after,
                .entering = n_before,
                .leaving = n_after,
                .key_stride = 1,
                .value_stride = 1});
    ComputeDenominators(sizes, denominators, vectors.inverse_b, nullptr);
  }
  MlstmPass<T> pass = PassOverKeys<T>(sizes);
  pass.q = q;
  pass.k = k;
  pass.v = args.v.data<T>();
  pass.o = args.h.data<T>();
  pass.sees = vectors.before;
  pass.seen = vectors.after;
  pass.factor = vectors.inverse_b;
  pass.scores = w;
  pass.entering = args.before.c.data<float>();
  pass.leaving = args.after.c.data<float>();
  RunPass(sizes, scratch, pass);
}

// Of arguments of either backward function.
template <class T, class Args>
void ComputeGradientDenominators(const MlstmLayout& sizes, const Args& args,
                                 const MlstmVectors& vectors) {
  ComputeDenominators<T>(sizes,
                         {.normaliser = args.normaliser.template data<float>(),
                          .maximum = args.maximum.template data<float>(),
                          .h = args.h.template data<T>(),
                          .dh = args.dh.template data<T>(),
                          .h_dh = args.h_dh.template data<float>(),
                          .normalised = args.options.normalised,
                          .gradient = args.options.normaliser_gradient,
                          .epsilon = static_cast<float>(args.options.epsilon)},
                         vectors.inverse_b, vectors.dnormaliser);
}

// Gradients of all but the gates, by passes over the tiles. Returns in how many parts the products
// of a token come.
template <class T>
int BackwardByPasses(const MlstmLayout& sizes, const MlstmScratch& scratch,
                     const MlstmBackwardArgs& args) {
  const MlstmVectors& vectors = scratch.vectors;
  auto *w = static_cast<Bf16*>(scratch.w), *p = static_cast<Bf16*>(scratch.p);
  const T *q = args.q.data<T>(), *k = args.k.data<T>(), *v = args.v.data<T>();
  const T* dh = args.dh.data<T>();
  const float *dc_after = args.dafter.c.data<float>(), *dn_after = args.dafter.n.data<float>();
  const MlstmRestarts restarts{.states = scratch.restart_states,
                               .first = args.before.c.defined(),
                               .last = dc_after != nullptr};
  if constexpr (kTensorCores<T>) {
    MlstmTileScores(sizes, vectors, {.q = q, .k = k, .v = v, .dh = dh, .w = w, .p = p});
  }

  MlstmPass<T> queries = PassOverValues<T>(sizes);
  queries.q = dh;
  queries.k = v;
  queries.v = k;
  queries.o = args.dq.data<T>();
  queries.sees = vectors.before;
  queries.seen = vectors.after;
  queries.extra_sees = vectors.before_normaliser;
  queries.extra_seen = vectors.after;
  queries.scores = p;
  if constexpr (kTensorCores<T>) {
    queries.multiplied = q;
    queries.products = scratch.query_products;
  }
  queries.entering = args.before.c.data<float>();
  queries.entering_extra = args.before.n.data<float>();
  queries.restarts = restarts;
  RunPass(sizes, scratch, queries);

  MlstmPass<T> keys = PassOverValues<T>(sizes);
  keys.q = v;
  keys.k = dh;
  keys.v = q;
  keys.o = args.dk.data<T>();
  keys.reverse = true;
  keys.sees = vectors.after;
  keys.seen = vectors.before;
  keys.extra_sees = vectors.after;
  keys.extra_seen = vectors.before_normaliser;
  keys.scores = p;
  if constexpr (kTensorCores<T>) {
    keys.multiplied = k;
    keys.products = scratch.key_products;
  }
  keys.entering = dc_after;
  keys.entering_extra = dn_after;
  keys.leaving_extra = args.dbefore.n.data<float>();
  keys.restarts = restarts;
  keys.restarts.products = scratch.restart_products;
  RunPass(sizes, scratch, keys);

  MlstmPass<T> values = PassOverKeys<T>(sizes);
  values.q = k;
  values.k = q;
  values.v = dh;
  values.o = args.dv.data<T>();
  values.reverse = true;
  values.sees = vectors.after;
  values.seen = vectors.before;
  values.scores = w;
  values.entering = dc_after;
  values.leaving = args.dbefore.c.data<float>();
  RunPass(sizes, scratch, values);

  if constexpr (kTensorCores<T>) {
    if (dc_after != nullptr) {
      MultiplyEnd(sizes, {.k = k,
                          .v = v,
                          .dc = dc_after,
                          .after = vectors.after,
                          .products = scratch.end_products});
    }
    return MlstmProductSlices(queries);
  } else {
    MultiplyRows(sizes, {.q = q,
                         .k = k,
                         .dq = args.dq.data<T>(),
                         .dk = args.dk.data<T>(),
                         .query_products = scratch.query_products,
                         .key_products = scratch.key_products});
    return 1;
  }
}

template <class T>
void RunBackward(const MlstmBackwardArgs& args) {
  const bool by_chunks = ByChunks(args.q, args.v);
  const MlstmLayout sizes = LayoutOf(args, by_chunks);
  CheckRows<T>("MlstmBackward", sizes,
               {args.q, args.k, args.v, args.h, args.dh, args.dq, args.dk, args.dv});
  const MlstmScratch scratch(sizes, kTensorCores<T>, by_chunks, args.workspace.data<float>(),
                             args.memories.data<float>());
  const MlstmVectors& vectors = scratch.vectors;
  ComputeGradientDenominators<T>(sizes, args, vectors);
  MlstmWeights(sizes,
               {.log_i = args.log_i.data<float>(),
                .log_f = args.log_f.data<float>(),
                .before_m = args.before.m.data<float>(),
                .after_m = args.after_m.data<float>(),
                .given_m = args.maximum.data<float>(),
                .stabilised = args.options.stabilised,
                .tokenwise = !kTensorCores<T>,
                .backward = true},
               vectors);
  int product_slices = 1;
  if (by_chunks) {
    MlstmBackwardByChunks(sizes, scratch, args);
    product_slices = MlstmColumnBlocks(sizes.keys);
  } else {
    product_slices = BackwardByPasses<T>(sizes, scratch, args);
  }
  ComputeGateGradients(sizes,
                       {.query_products = scratch.query_products,
                        .key_products = scratch.key_products,
                        .slices = product_slices,
                        .restart_products = scratch.restart_products,
                        .restart_parts = scratch.restart_parts,
                        .first = args.before.c.defined(),
                        .last = args.dafter.c.defined(),
                        .end_products = args.dafter.c.defined() ? scratch.end_products : nullptr,
                        .dlog_i = args.dlog_i.data<float>(),
                        .dlog_f = args.dlog_f.data<float>()});
}

template <class T>
void RunSummary(const MlstmSummaryArgs& args) {
  const bool by_chunks = ByChunks(args.k, args.v);
  const MlstmLayout sizes =
      MlstmLayoutOf(args.k, args.v, args.positions.data<int32_t>(), args.options, by_chunks);
  CheckRows<T>("MlstmSummary", sizes, {args.k, args.v});
  const MlstmScratch scratch(sizes, kTensorCores<T>, by_chunks, args.workspace.data<float>());
  MlstmWeights(sizes,
               {.log_i = args.log_i.data<float>(),
                .log_f = args.log_f.data<float>(),
                .final_m = args.increment.m.data<float>(),
                .total_log_f = args.log_decay.data<float>(),
                .stabilised = args.options.stabilised,
                .tokenwise = !kTensorCores<T>},
               scratch.vectors);
  if (by_chunks) return MlstmSummaryByChunks(sizes, scratch, args);
  MlstmPass<T> pass = PassOverValues<T>(sizes);
  pass.k = args.v.data<T>();
  pass.v = args.k.data<T>();
  pass.seen = scratch.vectors.after;
  pass.extra_seen = scratch.vectors.after;
  pass.leaving = args.increment.c.data<float>();
  pass.leaving_extra = args.increment.n.data<float>();
  RunPass(sizes, scratch, pass);
}

template <class T>
void RunGradSummary(const MlstmGradSummaryArgs& args) {
  const bool by_chunks = ByChunks(args.q, args.h);
  const MlstmLayout sizes =
      MlstmLayoutOf(args.q, args.h, args.positions.data<int32_t>(), args.options, by_chunks);
  CheckRows<T>("MlstmGradSummary", sizes, {args.q, args.h, args.dh});
  const MlstmScratch scratch(sizes, kTensorCores<T>, by_chunks, args.workspace.data<float>());
  ComputeGradientDenominators<T>(sizes, args, scratch.vectors);
  MlstmWeights(sizes,
               {.log_f = args.log_f.data<float>(),
                .before_m = args.before_m.data<float>(),
                .after_m = args.after_m.data<float>(),
                .given_m = args.maximum.data<float>(),
                .total_decay = args.decay.data<float>(),
                .stabilised = args.options.stabilised,
                .tokenwise = !kTensorCores<T>,
                .backward = true},
               scratch.vectors);
  if (by_chunks) return MlstmGradSummaryByChunks(sizes, scratch, args);
  MlstmPass<T> pass = PassOverValues<T>(sizes);
  pass.k = args.dh.data<T>();
  pass.v = args.q.data<T>();
  pass.reverse = true;
  pass.seen = scratch.vectors.before;
  pass.extra_seen = scratch.vectors.before_normaliser;
  pass.leaving = args.increment_c.data<float>();
  pass.leaving_extra = args.increment_n.data<float>();
  RunPass(sizes, scratch, pass);
}

}  // namespace

void MlstmForwardCuda(const MlstmForwardArgs& args) {
  DispatchCuda("MlstmForward", args.q, [&]<class T>(T) { RunForward<T>(args); });
}
void MlstmBackwardCuda(const MlstmBackwardArgs& args) {
  DispatchCuda("MlstmBackward", args.q, [&]<class T>(T) { RunBackward<T>(args); });
}
void MlstmSummaryCuda(const MlstmSummaryArgs& args) {
  DispatchCuda("MlstmSummary", args.k, [&]<class T>(T) { RunSummary<T>(args); });
}
void MlstmGradSummaryCuda(const MlstmGradSummaryArgs& args) {
  DispatchCuda("MlstmGradSummary", args.q, [&]<class T>(T) { RunGradSummary<T>(args); });
}

}  // namespace eyrie
