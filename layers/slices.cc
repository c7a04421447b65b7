#include "layers/slices.h"

#include <vector>

namespace eyrie {

Slices::Slices(const Mesh& mesh, int count, Device device, Trace* trace)
    : count_(count), trace_(trace), mesh_(YieldingMesh(mesh, scheduler_, trace)) {
  for (int slice = 1; slice < count; ++slice) arenas_.emplace_back(device);
}

size_t Slices::peak_bytes() const {
  size_t bytes = 0;
  for (const Arena& arena : arenas_) bytes += arena.peak_bytes();
  return bytes;
}

void Slices::ForwardBackward(const Model& model, Run& run, const Model::Batch& batch,
                             int64_t chunk_length, bool completes_step) {
  if (completes_step) run.params.ReduceAsReady(count_);
  if (count_ == 1) return eyrie::ForwardBackward(model, run, batch, chunk_length, completes_step);

  EYRIE_CHECK(run.batch() % count_ == 0);
  const int64_t share = run.batch() / count_;
  std::vector<std::function<void()>> tasks;
  for (int slice = 0; slice < count_; ++slice) {
    tasks.push_back([&, slice] {
      const Trace::Scope turn(trace_, Trace::Kind::kIdle);
      turn.SetSlice(slice);
      const auto rows = [&](const Tensor& all) {
        return all.Rows(slice * share, (slice + 1) * share);
      };
      Run own{mesh_, run.params, slice == 0 ? run.arena : arenas_[static_cast<size_t>(slice - 1)]};
      own.positions = rows(run.positions);
      own.observe = run.observe;
      own.trace = run.trace;
      const Model::Batch part{rows(batch.tokens), rows(batch.labels), batch.scale, batch.loss};
      eyrie::ForwardBackward(model, own, part, chunk_length, completes_step);
    });
  }
  const Trace::Scope turns(trace_, Trace::Kind::kIdle);
  scheduler_.Run(tasks);
}

}  // namespace eyrie
