// The mean loss of a model on a token file.
#pragma once

#include "launcher/batches.h"
#include "layers/model.h"

namespace eyrie {

struct Evaluation {
  double loss = 0.0;  // nats a token
  int64_t tokens = 0;
  int64_t sequences = 0;
};

// Evaluates the first `sequences` samples of `reader`, shared among the data ranks, `micro_batch`
// at a time; the same on every rank.
Evaluation Evaluate(Run& run, const Model& model, BatchReader& reader, int64_t sequences,
                    int64_t micro_batch);

}  // namespace eyrie
