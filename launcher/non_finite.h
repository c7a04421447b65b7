// Finds out where a training step met the first value that is NaN or infinite.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "layers/layer.h"

namespace eyrie {

// Watches all layers of `run` while the step's microbatches are run once more, with the parameters
// that they had. Looks at every value, which is too slow to do at every step.
class NonFiniteSearch {
 public:
  explicit NonFiniteSearch(Run& run);
  ~NonFiniteSearch();
  NonFiniteSearch(const NonFiniteSearch&) = delete;
  NonFiniteSearch& operator=(const NonFiniteSearch&) = delete;

  // The next microbatch has the samples first, first+1, ..., first+count-1.
  void Begin(int64_t first, int64_t count);
  // It is done: looks at the parameters' gradients so far.
  void End();
  // What came first on any rank, on the one rank that found it: e.g. "the output of block 3
  // (recurrent), in samples 16 to 19, on data rank 1". Empty on other ranks. Collective over the
  // mesh.
  std::string Report() const;

 private:
  void Look(const std::string& what, const Tensor& tensor);

  Run& run_;
  int64_t first_ = 0, count_ = 0;
  // Looks so far: ranks look at the same things in the same order.
  int64_t looks_ = 0;
  std::optional<int64_t> found_at_;
  std::string found_;
};

}  // namespace eyrie
