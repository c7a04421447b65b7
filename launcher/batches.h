// Draws the sequences of each microbatch.
#pragma once

#include <optional>
#include <string>

#include "configs/schema/config.pb.h"
#include "core/memory.h"
#include "launcher/indexed_dataset.h"
#include "launcher/sampler.h"
#include "layers/model.h"

namespace eyrie {

class BatchReader {
 public:
  struct Options {
    std::string prefix;
    int64_t max_batch = 1;   // sequences at a time
    int64_t length = 0;      // tokens of a sequence
    int64_t vocab_size = 0;  // ids are below
    // This rank's part of each sequence: [chunk, chunk + 1) of chunks; with `stripe`, of every
    // chunks * stripe tokens, which the ranks run together (train.chunk_length).
    int chunk = 0, chunks = 1;
    int64_t stripe = 0;
    config::DataConfig::Packing packing = config::DataConfig::DOCUMENTS;
    config::DataConfig::Labels labels = config::DataConfig::NEXT_TOKEN;
    uint64_t seed = 0;
    bool shuffle = false;
    Device device = Device::kCpu;  // where batches are wanted
  };
  // Throws kBadInput naming the file at fault, also where labels are given and not as many as there
  // are tokens.
  explicit BatchReader(const Options& options);

  // What a reader takes of host memory, beside the mapped file.
  static size_t BufferBytes(int64_t max_batch, int64_t length, int chunks,
                            config::DataConfig::Labels labels);
  size_t buffer_bytes() const;

  const std::string& prefix() const { return options_.prefix; }
  const Sampler& sampler() const { return sampler_; }
  // Checks this part of the token files against the vocabulary, or as much of it as takes no time,
  // so that a mismatch shows before training begins. Every batch is checked again when it is read.
  void CheckPart(int part, int parts) const;
  // The samples first, first+1, ..., first+count-1. The tensors stay valid until the next call.
  Model::Batch Read(int64_t first, int64_t count);
  // How many labels of those samples count, in this rank's part of them. What Read gave before is
  // then no longer valid.
  int64_t CountLabels(int64_t first, int64_t count);
  // [count, T]: where each token of the samples last read stands in its document, or in the
  // sequence if its document began before that; T = length / chunks tokens are this rank's.
  Tensor positions(int64_t count) const { return Wanted(positions_).Rows(0, count); }

 private:
  // The labels of a sample whose tokens are in the window; negative: does not count.
  const int32_t* LabelsOf(int64_t sample);
  // The positions of the `length` tokens from `first` on.
  void FillPositions(int64_t first);
  // This rank's tokens of a whole sequence, one after another.
  void CopyPart(const int32_t* sequence, int32_t* part) const;

  Options options_;
  IndexedDataset dataset_;
  std::optional<IndexedDataset> given_labels_;
  Sampler sampler_;
  // What is read on the host, and its copy on another device.
  struct Pair {
    OwnedTensor host, device;
  };
  static const Tensor& Wanted(const Pair& pair) {
    return pair.device.tensor.defined() ? pair.device.tensor : pair.host.tensor;
  }

  OwnedTensor window_, window_labels_, window_positions_;
  Pair tokens_, labels_, positions_;
};

}  // namespace eyrie
