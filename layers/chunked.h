// Training and evaluation that run their sequences chunk by chunk, with exact results, so that the
// memory of activations follows the chunk and not the sequence. With S ranks on the sequence axis
// they are at work on the same S * chunk_length tokens: of these, which are the k-th of the
// sequence, rank s holds chunk_length from s * chunk_length on, as its own tokens from k *
// chunk_length on.
#pragma once

#include "layers/model.h"

namespace eyrie {

// Adds the loss of `batch` and its gradients; run.positions is [B, T] as for Model::Forward.
// With chunk_length 0 or at least T: the whole at once. Otherwise a first sweep keeps only the
// state that enters each chunk, and a second one, from the last chunk to the first, recomputes the
// chunk and takes its backward step: one more forward pass, for memory. Global attention's states
// hold all earlier keys and values, so with it memory still grows with the sequence. With
// `completes_step` the last backward step of all tells the store of gradients as they become
// complete, so that they can leave (ParamStore::ReduceAsReady).
void ForwardBackward(const Model& model, Run& run, const Model::Batch& batch, int64_t chunk_length,
                     bool completes_step);

// Adds the loss of `batch` to it, run in chunks likewise, and returns the id of each token's
// largest logit, [B, T] int32 in the arena.
Tensor Evaluate(const Model& model, Run& run, const Model::Batch& batch, int64_t chunk_length);

}  // namespace eyrie
