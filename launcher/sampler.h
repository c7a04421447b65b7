// The order of training samples: a function of (seed, sample number) alone, so that any layout, and
// a run resumed at any step, sees the same data.
#pragma once

#include <cstdint>

#include "core/random.h"
#include "launcher/indexed_dataset.h"

namespace eyrie {

// Cuts a dataset into windows of sequence_length + lookahead tokens: with a lookahead of 1, the
// inputs and the labels shifted by one. Windows start every sequence_length tokens, so that each
// token is a label once; what is left at the end of the file is not used. Thread-safe.
class Sampler {
 public:
  // Keeps a reference to `dataset`. Without `shuffle`, windows come in file order. Throws kBadInput
  // naming the file if it does not hold one window.
  Sampler(const IndexedDataset& dataset, int64_t sequence_length, uint64_t seed,
          bool shuffle = true, int64_t lookahead = 1);

  // Windows of the dataset: the samples of one epoch.
  int64_t windows() const { return windows_; }
  // The window of sample number `sample`, which counts on across epochs from 0. Every epoch is
  // another permutation of all windows.
  int64_t WindowOf(int64_t sample) const;
  // Where this window begins in the dataset's stream of tokens.
  int64_t FirstToken(int64_t sample) const { return WindowOf(sample) * sequence_length_; }
  // Tokens of a window.
  int64_t window_length() const { return sequence_length_ + lookahead_; }
  // Copies the window_length() tokens of this sample.
  void Read(int64_t sample, int32_t* tokens) const;

 private:
  const IndexedDataset& dataset_;
  int64_t sequence_length_, lookahead_;
  uint64_t seed_;
  bool shuffle_;
  int64_t windows_;
};

// The image of `index` under a permutation of [0, size) keyed by the generator; needs no memory. It
// spends the generator's indices below 2^36.
int64_t Permute(const Random& random, int64_t size, int64_t index);

}  // namespace eyrie
