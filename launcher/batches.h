// Draws the sequences of each microbatch.
#pragma once

#include <string>

#include "core/memory.h"
#include "launcher/indexed_dataset.h"
#include "launcher/sampler.h"
#include "layers/model.h"

namespace eyrie {

class BatchReader {
 public:
  // Up to `max_batch` sequences of `tokens` tokens at a time, with ids below `vocab_size`.
  BatchReader(const std::string& prefix, int64_t max_batch, int64_t tokens, int64_t vocab_size,
              uint64_t seed, bool shuffle);

  const Sampler& sampler() const { return sampler_; }
  // Checks up to `limit` tokens of this part of the token file against the vocabulary, so that a
  // mismatch shows before training begins.
  void CheckPart(int part, int parts, int64_t limit) const;
  // Fills tokens and labels with the samples first, first+1, ..., first+count-1. The tensors stay
  // valid until the next call.
  Model::Batch Read(int64_t first, int64_t count);
  // [count, T]: each sequence is one document.
  Tensor positions(int64_t count) const { return positions_.tensor.Rows(0, count); }

 private:
  IndexedDataset dataset_;
  Sampler sampler_;
  int64_t vocab_size_;
  OwnedTensor window_, tokens_, labels_, positions_;
};

}  // namespace eyrie
