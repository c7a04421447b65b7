// The mean loss and the accuracy of a model on a token file.
#pragma once

#include "launcher/batches.h"
#include "layers/model.h"

namespace eyrie {

struct Evaluation {
  double loss = 0.0;      // nats a label that counts
  double accuracy = 0.0;  // the share of these labels that are the ids of the largest logits
  // The share of sequences all of whose labels are, among those with labels that count.
  double exact_sequences = 0.0;
  int64_t tokens = 0;  // labels that counted
  int64_t sequences = 0;
};

// Evaluates the first `sequences` samples of `reader`, shared among the data ranks, `micro_batch`
// sequences and `chunk_length` tokens (0: all) at a time; the same on every rank. Throws kBadInput
// if no label counts.
Evaluation Evaluate(Run& run, const Model& model, BatchReader& reader, int64_t sequences,
                    int64_t micro_batch, int64_t chunk_length);

}  // namespace eyrie
