// A training pass whose batch is cut into slices that take turns: while the messages of one travel,
// another one computes.
#pragma once

#include <deque>

#include "layers/chunked.h"
#include "parallel/scheduler.h"

namespace eyrie {

class Slices {
 public:
  // `mesh` is the Run's, and must outlive this, like `trace` (null: none); scratch memory is on
  // `device`.
  Slices(const Mesh& mesh, int count, Device device, Trace* trace);

  // Like the function of the same name, whose arguments it shares; `batch` has a multiple of
  // `count` sequences. Slice by slice the same code runs, each slice with scratch memory of its
  // own, which together are about as large as that of one pass over all. Arms the store
  // (ReduceAsReady) when the pass completes a step: a gradient leaves when the last slice is done
  // with it.
  void ForwardBackward(const Model& model, Run& run, const Model::Batch& batch,
                       int64_t chunk_length, bool completes_step);

  // The most bytes of scratch memory that were in use, beside the Run's.
  size_t peak_bytes() const;

 private:
  int count_;
  Trace* trace_;
  Scheduler scheduler_;
  Mesh mesh_;                 // whose waits let other slices run
  std::deque<Arena> arenas_;  // of all slices but the first, which uses the Run's
};

}  // namespace eyrie
