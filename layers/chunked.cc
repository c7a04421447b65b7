#include "layers/chunked.h"

#include <algorithm>
#include <vector>

namespace eyrie {
namespace {

// Columns [begin, end) of a [B, T] tensor, as a tensor of its own.
Tensor Columns(Arena& arena, const Tensor& from, int64_t begin, int64_t end) {
  const int64_t batch = from.dim(0), tokens = from.dim(1);
  const Tensor part = arena.Allocate(from.dtype, {batch, end - begin});
  CopyRows(from.View({batch, tokens, 1}), begin, part.View({batch, end - begin, 1}), 0,
           end - begin);
  return part;
}

}  // namespace

void ForwardBackward(const Model& model, Run& run, const Model::Batch& batch, int64_t chunk_length,
                     bool completes_step) {
  ArenaScope scope(run.arena);
  const int64_t tokens = run.tokens();
  if (chunk_length <= 0 || chunk_length >= tokens) {
    Model::Activations saved;
    model.Forward(run, batch, nullptr, nullptr, saved);
    run.completes_gradients = completes_step;
    model.Backward(run, batch, saved, nullptr, nullptr, nullptr);
    return;
  }

  EYRIE_CHECK(run.mesh.shape().sequence == 1 || tokens % chunk_length == 0);
  const Tensor positions = run.positions;
  const int64_t chunks = (tokens + chunk_length - 1) / chunk_length;
  const auto begin = [&](int64_t chunk) { return chunk * chunk_length; };
  const auto end = [&](int64_t chunk) { return std::min(tokens, (chunk + 1) * chunk_length); };
  const auto make_state = [&] {
    return model.MakeState(run.params, batch.tokens.dim(0), tokens * run.mesh.shape().sequence,
                           &run.arena);
  };

  // entering[c] is the state before chunk c.
  std::vector<ModelState> entering;
  entering.push_back(make_state());
  for (int64_t chunk = 0; chunk + 1 < chunks; ++chunk) {
    entering.push_back(make_state());
    ArenaScope chunk_scope(run.arena);
    run.positions = Columns(run.arena, positions, begin(chunk), end(chunk));
    model.Advance(run, Columns(run.arena, batch.tokens, begin(chunk), end(chunk)),
                  entering[static_cast<size_t>(chunk)], entering.back());
  }

  ModelState grad_after = make_state(), grad_before = make_state();
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    ArenaScope chunk_scope(run.arena);
    run.positions = Columns(run.arena, positions, begin(chunk), end(chunk));
    const Model::Batch part{Columns(run.arena, batch.tokens, begin(chunk), end(chunk)),
                            Columns(run.arena, batch.labels, begin(chunk), end(chunk)), batch.scale,
                            batch.loss};
    const ModelState& before = entering.back();
    Model::Activations saved;
    model.Forward(run, part, &before, nullptr, saved);
    const bool last = chunk == chunks - 1;
    run.completes_gradients = completes_step && chunk == 0;
    model.Backward(run, part, saved, &before, last ? nullptr : &grad_after, &grad_before);
    std::swap(grad_after, grad_before);
    entering.pop_back();
  }
  run.positions = positions;
}

}  // namespace eyrie
