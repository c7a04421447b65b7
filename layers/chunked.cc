#include "layers/chunked.h"

#include <algorithm>
#include <vector>

#include "core/round.h"

namespace eyrie {
namespace {

// How a rank's tokens of each sequence, [B, tokens] of a batch, are cut into chunks.
class Chunks {
 public:
  // Takes the positions of the whole from `run`, and gives them back when it goes.
  Chunks(const Model& model, Run& run, const Model::Batch& batch, int64_t length)
      : model_(model), run_(run), batch_(batch), positions_(run.positions), length_(length) {
    EYRIE_CHECK(run.mesh.shape().sequence == 1 || run.tokens() % length == 0);
  }
  ~Chunks() { run_.positions = positions_; }
  Chunks(const Chunks&) = delete;
  Chunks& operator=(const Chunks&) = delete;

  int64_t count() const { return CeilDiv(tokens(), length_); }
  int64_t begin(int64_t chunk) const { return chunk * length_; }
  // Chunk `chunk` of the batch, in the arena; the Run's positions become the chunk's.
  Model::Batch Enter(int64_t chunk) const {
    run_.positions = Part(positions_, chunk);
    return {Part(batch_.tokens, chunk), Part(batch_.labels, chunk), batch_.scale, batch_.loss};
  }
  // Zeros, in the arena; it has room for the whole of the sequences, on all ranks that hold them.
  ModelState MakeState() const {
    return model_.MakeState(run_.params, batch_.tokens.dim(0),
                            tokens() * run_.mesh.shape().sequence, &run_.arena);
  }

 private:
  int64_t tokens() const { return positions_.dim(1); }
  // The chunk's columns of a [B, T] tensor, as a tensor of its own.
  Tensor Part(const Tensor& from, int64_t chunk) const {
    const int64_t batch = from.dim(0), rows = std::min(tokens() - begin(chunk), length_);
    const Tensor part = run_.arena.Allocate(from.dtype, {batch, rows});
    CopyRows(from.View({batch, tokens(), 1}), begin(chunk), part.View({batch, rows, 1}), 0, rows);
    return part;
  }

  const Model& model_;
  Run& run_;
  const Model::Batch& batch_;
  const Tensor positions_;
  const int64_t length_;
};

bool AtOnce(const Run& run, int64_t chunk_length) {
  return chunk_length <= 0 || chunk_length >= run.tokens();
}

}  // namespace

void ForwardBackward(const Model& model, Run& run, const Model::Batch& batch, int64_t chunk_length,
                     bool completes_step) {
  ArenaScope scope(run.arena);
  if (AtOnce(run, chunk_length)) {
    Model::Activations saved;
    model.Forward(run, batch, nullptr, nullptr, saved);
    run.completes_gradients = completes_step;
    model.Backward(run, batch, saved, nullptr, nullptr, nullptr);
    return;
  }

  const Chunks chunks(model, run, batch, chunk_length);
  // entering[c] is the state before chunk c.
  std::vector<ModelState> entering;
  entering.push_back(chunks.MakeState());
  for (int64_t chunk = 0; chunk + 1 < chunks.count(); ++chunk) {
    entering.push_back(chunks.MakeState());
    ArenaScope chunk_scope(run.arena);
    const Model::Batch part = chunks.Enter(chunk);
    model.Advance(run, part.tokens, entering[static_cast<size_t>(chunk)], entering.back());
  }

  ModelState grad_after = chunks.MakeState(), grad_before = chunks.MakeState();
  for (int64_t chunk = chunks.count() - 1; chunk >= 0; --chunk) {
    ArenaScope chunk_scope(run.arena);
    const Model::Batch part = chunks.Enter(chunk);
    const ModelState& before = entering.back();
    Model::Activations saved;
    model.Forward(run, part, &before, nullptr, saved);
    const bool last = chunk == chunks.count() - 1;
    run.completes_gradients = completes_step && chunk == 0;
    model.Backward(run, part, saved, &before, last ? nullptr : &grad_after, &grad_before);
    std::swap(grad_after, grad_before);
    entering.pop_back();
  }
}

Tensor Evaluate(const Model& model, Run& run, const Model::Batch& batch, int64_t chunk_length) {
  const int64_t sequences = run.batch(), tokens = run.tokens();
  const Tensor predicted = run.arena.Allocate(DType::kI32, {sequences, tokens});
  ArenaScope scope(run.arena);
  if (AtOnce(run, chunk_length)) {
    model.Evaluate(run, batch, nullptr, nullptr, predicted);
    return predicted;
  }

  const Chunks chunks(model, run, batch, chunk_length);
  ModelState before = chunks.MakeState(), after = chunks.MakeState();
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    ArenaScope chunk_scope(run.arena);
    const Model::Batch part = chunks.Enter(chunk);
    const int64_t rows = run.tokens();
    const Tensor ids = run.arena.Allocate(DType::kI32, {sequences, rows});
    model.Evaluate(run, part, &before, &after, ids);
    CopyRows(ids.View({sequences, rows, 1}), 0, predicted.View({sequences, tokens, 1}),
             chunks.begin(chunk), rows);
    std::swap(before, after);
  }
  return predicted;
}

}  // namespace eyrie
