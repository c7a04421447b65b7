#include "launcher/batches.h"

#include <algorithm>

namespace eyrie {

BatchReader::BatchReader(const std::string& prefix, int64_t max_batch, int64_t tokens,
                         int64_t vocab_size, uint64_t seed, bool shuffle)
    : dataset_(prefix),
      sampler_(dataset_, tokens, seed, shuffle),
      vocab_size_(vocab_size),
      window_(DType::kI32, {tokens + 1}),
      tokens_(DType::kI32, {max_batch, tokens}),
      labels_(DType::kI32, {max_batch, tokens}),
      positions_(DType::kI32, {max_batch, tokens}) {
  for (int64_t i = 0; i < max_batch * tokens; ++i) {
    positions_.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % tokens);
  }
}

void BatchReader::CheckPart(int part, int parts, int64_t limit) const {
  const int64_t share = (dataset_.total_tokens() + parts - 1) / parts;
  const int64_t first = std::min(part * share, dataset_.total_tokens());
  const int64_t count = std::min({share, dataset_.total_tokens() - first, limit});
  dataset_.CheckTokens(vocab_size_ - 1, first, count);
}

Model::Batch BatchReader::Read(int64_t first, int64_t count) {
  const int64_t length = tokens_.tensor.dim(1);
  int32_t* window = window_.tensor.data<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    dataset_.CheckTokens(vocab_size_ - 1, sampler_.FirstToken(first + i), length + 1);
    sampler_.Read(first + i, window);
    std::copy_n(window, length, tokens_.tensor.data<int32_t>() + i * length);
    std::copy_n(window + 1, length, labels_.tensor.data<int32_t>() + i * length);
  }
  return {.tokens = tokens_.tensor.Rows(0, count), .labels = labels_.tensor.Rows(0, count)};
}

}  // namespace eyrie
