#include "launcher/batches.h"

#include <algorithm>
#include <numeric>

#include "core/round.h"

namespace eyrie {
namespace {

// Tokens that CheckPart looks at, at most.
constexpr int64_t kCheckedTokens = int64_t{1} << 26;

// Whether a label is the token that follows, which a window must hold too.
int64_t Lookahead(config::DataConfig::Labels labels) {
  return labels == config::DataConfig::NEXT_TOKEN ? 1 : 0;
}

}  // namespace

BatchReader::BatchReader(const Options& options)
    : options_(options),
      dataset_(options.prefix),
      sampler_(dataset_, options.length, options.seed, options.shuffle, Lookahead(options.labels)),
      window_(DType::kI32, {sampler_.window_length()}),
      window_positions_(DType::kI32, {options.length}) {
  if (options.labels == config::DataConfig::GIVEN) {
    given_labels_.emplace(options.prefix + ".labels");
    if (given_labels_->total_tokens() != dataset_.total_tokens()) {
      ThrowBadInput(given_labels_->prefix(), ".bin: ", given_labels_->total_tokens(),
                    " labels, but ", options.prefix, ".bin has ", dataset_.total_tokens(),
                    " tokens");
    }
    window_labels_ = OwnedTensor(DType::kI32, {options.length});
  }
  const int64_t tokens = options.length / options.chunks;
  for (Pair* pair : {&tokens_, &labels_, &positions_}) {
    const Shape shape{options.max_batch, tokens};
    pair->host = OwnedTensor(DType::kI32, shape);
    if (options.device != Device::kCpu) {
      pair->device = OwnedTensor(DType::kI32, shape, options.device);
    }
  }
}

size_t BatchReader::BufferBytes(int64_t max_batch, int64_t length, int chunks,
                                config::DataConfig::Labels labels) {
  const int64_t label_window = labels == config::DataConfig::GIVEN ? length : 0;
  const int64_t elements =
      2 * length + Lookahead(labels) + label_window + 3 * max_batch * (length / chunks);
  return static_cast<size_t>(elements) * sizeof(int32_t);
}

size_t BatchReader::buffer_bytes() const {
  size_t bytes = 0;
  for (const OwnedTensor* tensor : {&window_, &window_labels_, &window_positions_, &tokens_.host,
                                    &labels_.host, &positions_.host}) {
    bytes += tensor->buffer.bytes();
  }
  return bytes;
}

void BatchReader::FillPositions(int64_t first) {
  int32_t* positions = window_positions_.tensor.data<int32_t>();
  std::iota(positions, positions + options_.length, 0);
  if (options_.packing == config::DataConfig::CONTINUOUS) return;
  // Walks back from the last token, document by document.
  for (int64_t end = first + options_.length; end > first;) {
    const int64_t start = std::max(first, dataset_.DocumentStartAtOrBefore(end - 1));
    std::iota(positions + (start - first), positions + (end - first), 0);
    end = start;
  }
}

void BatchReader::CheckPart(int part, int parts) const {
  const int64_t share = CeilDiv(dataset_.total_tokens(), parts);
  const int64_t first = std::min(part * share, dataset_.total_tokens());
  const int64_t count = std::min({share, dataset_.total_tokens() - first, kCheckedTokens});
  dataset_.CheckTokens(options_.vocab_size - 1, first, count);
  if (given_labels_) given_labels_->CheckLabels(options_.vocab_size, first, count);
}

void BatchReader::CopyPart(const int32_t* sequence, int32_t* part) const {
  const int64_t length = options_.length / options_.chunks;
  const bool whole = options_.stripe == 0 || options_.chunks == 1;
  const int64_t stripe = whole ? length : options_.stripe;
  for (int64_t begin = 0; begin < length; begin += stripe) {
    std::copy_n(sequence + begin * options_.chunks + options_.chunk * stripe, stripe, part + begin);
  }
}

const int32_t* BatchReader::LabelsOf(int64_t sample) {
  if (!given_labels_) return window_.tensor.data<int32_t>() + 1;
  int32_t* labels = window_labels_.tensor.data<int32_t>();
  const int64_t first = sampler_.FirstToken(sample);
  given_labels_->CheckLabels(options_.vocab_size, first, options_.length);
  given_labels_->Read(first, options_.length, labels);
  std::for_each_n(labels, options_.length, [](int32_t& label) { --label; });
  return labels;
}

int64_t BatchReader::CountLabels(int64_t first, int64_t count) {
  const int64_t length = labels_.host.tensor.dim(1);
  if (!given_labels_) return count * length;
  int32_t* part = labels_.host.tensor.data<int32_t>();
  int64_t counted = 0;
  for (int64_t i = 0; i < count; ++i) {
    CopyPart(LabelsOf(first + i), part);
    counted += std::count_if(part, part + length, [](int32_t label) { return label >= 0; });
  }
  return counted;
}

Model::Batch BatchReader::Read(int64_t first, int64_t count) {
  const int64_t length = tokens_.host.tensor.dim(1);
  int32_t* window = window_.tensor.data<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    dataset_.CheckTokens(options_.vocab_size - 1, sampler_.FirstToken(first + i),
                         sampler_.window_length());
    sampler_.Read(first + i, window);
    FillPositions(sampler_.FirstToken(first + i));
    CopyPart(window, tokens_.host.tensor.data<int32_t>() + i * length);
    CopyPart(LabelsOf(first + i), labels_.host.tensor.data<int32_t>() + i * length);
    CopyPart(window_positions_.tensor.data<int32_t>(),
             positions_.host.tensor.data<int32_t>() + i * length);
  }
  for (const Pair* pair : {&tokens_, &labels_, &positions_}) {
    if (pair->device.tensor.defined()) Copy(pair->host.tensor, pair->device.tensor);
  }
  return {.tokens = Wanted(tokens_).Rows(0, count), .labels = Wanted(labels_).Rows(0, count)};
}

}  // namespace eyrie
