// The mLSTM by products over chunks: which ones, in which order (mlstm_chunks.h).
#include "kernels/mlstm/mlstm_chunks.h"

namespace eyrie {
namespace {

using Bf16 = __nv_bfloat16;

// C and n at all boundaries.
MlstmChunkStates StatesOf(const MlstmScratch& scratch, const Bf16* k, const Bf16* v) {
  const MlstmVectors& vectors = scratch.vectors;
  return {.rows = k,
          .columns = v,
          .seen = vectors.after,
          .extra_seen = vectors.after,
          .log_decay = vectors.log_decay,
          .states = static_cast<Bf16*>(scratch.chunk_states),
          .normalisers = scratch.normaliser_states};
}
// dC and dn, in the place of the others.
MlstmChunkStates GradientStatesOf(const MlstmScratch& scratch, const Bf16* q, const Bf16* dh) {
  MlstmChunkStates states = StatesOf(scratch, q, dh);
  states.reverse = true;
  states.seen = scratch.vectors.before;
  states.extra_seen = scratch.vectors.before_normaliser;
  return states;
}

}  // namespace

void MlstmForwardByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                          const MlstmForwardArgs& args) {
  const MlstmVectors& vectors = scratch.vectors;
  const Bf16 *q = args.q.data<Bf16>(), *k = args.k.data<Bf16>(), *v = args.v.data<Bf16>();
  auto* w = static_cast<Bf16*>(scratch.w);
  float* normaliser = args.normaliser.data<float>();
  MlstmChunkStates states = StatesOf(scratch, k, v);
  states.entering = args.before.c.data<float>();
  states.entering_n = args.before.n.data<float>();
  states.leaving = args.after.c.data<float>();
  states.leaving_n = args.after.n.data<float>();
  ComputeChunkStates(sizes, states);
  ComputeChunkScores(
      sizes, vectors,
      {.q = q, .k = k, .w = w, .row_sums = normaliser, .earlier_sums = scratch.earlier_sums});
  AddStatesToNormalisers(sizes, q,
                         {.states = scratch.normaliser_states,
                          .per_head = sizes.chunks + 1,
                          .tiles = sizes.chunk_tiles,
                          .log_decay = vectors.log_decay,
                          .further = scratch.earlier_sums},
                         vectors.before,
                         {.maximum = args.maximum.data<float>(),
                          .normalised = args.options.normalised,
                          .epsilon = static_cast<float>(args.options.epsilon)},
                         normaliser, vectors.inverse_b);
  ComputeChunkOutputs(sizes, {{.rows = q,
                               .others = v,
                               .o = args.h.data<Bf16>(),
                               .entered = states.entering != nullptr,
                               .states = states.states,
                               .scores = w,
                               .sees = vectors.before,
                               .factor = vectors.inverse_b,
                               .log_decay = vectors.log_decay}});
}

void MlstmBackwardByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                           const MlstmBackwardArgs& args) {
  const MlstmVectors& vectors = scratch.vectors;
  const Bf16 *q = args.q.data<Bf16>(), *k = args.k.data<Bf16>(), *v = args.v.data<Bf16>();
  const Bf16* dh = args.dh.data<Bf16>();
  auto *w = static_cast<Bf16*>(scratch.w), *p = static_cast<Bf16*>(scratch.p);
  ComputeChunkScores(sizes, vectors, {.q = q, .k = k, .v = v, .dh = dh, .w = w, .p = p});

  MlstmChunkStates states = StatesOf(scratch, k, v);
  states.entering = args.before.c.data<float>();
  states.entering_n = args.before.n.data<float>();
  states.others = args.dafter.c.data<float>();
  states.others_n = args.dafter.n.data<float>();
  states.products = scratch.restart_products;
  if (!args.memories.defined()) ComputeChunkStates(sizes, states);
  const MlstmChunkOutputs queries{.rows = dh,
                                  .others = k,
                                  .o = args.dq.data<Bf16>(),
                                  .transposed = true,
                                  .entered = states.entering != nullptr,
                                  .states = states.states,
                                  .scores = p,
                                  .sees = vectors.before,
                                  .log_decay = vectors.log_decay,
                                  .extra_sees = vectors.before_normaliser,
                                  .normalisers = states.normalisers,
                                  .multiplied = q,
                                  .products = scratch.query_products};
  ComputeChunkOutputs(sizes, {queries});

  MlstmChunkStates gradients = GradientStatesOf(scratch, q, dh);
  gradients.entering = args.dafter.c.data<float>();
  gradients.entering_n = args.dafter.n.data<float>();
  gradients.leaving = args.dbefore.c.data<float>();
  gradients.leaving_n = args.dbefore.n.data<float>();
  gradients.others = states.entering;
  gradients.others_n = states.entering_n;
  gradients.products = scratch.restart_products;
  ComputeChunkStates(sizes, gradients);
  MlstmChunkOutputs keys = queries;
  keys.rows = v;
  keys.others = q;
  keys.o = args.dk.data<Bf16>();
  keys.reverse = true;
  keys.entered = gradients.entering != nullptr;
  keys.sees = keys.extra_sees = vectors.after;
  keys.multiplied = k;
  keys.products = scratch.key_products;
  const MlstmChunkOutputs values{.rows = k,
                                 .others = dh,
                                 .o = args.dv.data<Bf16>(),
                                 .reverse = true,
                                 .entered = gradients.entering != nullptr,
                                 .states = states.states,
                                 .scores = w,
                                 .sees = vectors.after,
                                 .log_decay = vectors.log_decay};
  ComputeChunkOutputs(sizes, {keys, values});
}

void MlstmSummaryByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                          const MlstmSummaryArgs& args) {
  MlstmChunkStates states = StatesOf(scratch, args.k.data<Bf16>(), args.v.data<Bf16>());
  states.leaving = args.increment.c.data<float>();
  states.leaving_n = args.increment.n.data<float>();
  states.states = nullptr;
  ComputeChunkStates(sizes, states);
}

void MlstmGradSummaryByChunks(const MlstmLayout& sizes, const MlstmScratch& scratch,
                              const MlstmGradSummaryArgs& args) {
  MlstmChunkStates states = GradientStatesOf(scratch, args.q.data<Bf16>(), args.dh.data<Bf16>());
  states.leaving = args.increment_c.data<float>();
  states.leaving_n = args.increment_n.data<float>();
  states.states = nullptr;
  ComputeChunkStates(sizes, states);
}

}  // namespace eyrie
