#include "launcher/sampler.h"

#include <cmath>

#include "core/error.h"
#include "core/round.h"

namespace eyrie {
namespace {

// Enough that sizes as small as 3 reach all their permutations about equally often.
constexpr uint64_t kRounds = 16;

}  // namespace

// A Feistel network on pairs (left, right) of a left_size x right_size grid that just covers
// [0, size), adding modulo each side's size instead of xor so that the grid need not be a power of
// two; an image outside [0, size) is permuted again until it falls inside (cycle walking).
int64_t Permute(const Random& random, int64_t size, int64_t index) {
  EYRIE_CHECK(size > 0 && size <= int64_t{1} << 62 && index >= 0 && index < size);
  const auto count = static_cast<uint64_t>(size);
  // The root may be off by rounding; any left_size will do that keeps both sides within 32 bits.
  const auto left_size = static_cast<uint64_t>(std::ceil(std::sqrt(static_cast<double>(size))));
  const uint64_t right_size = CeilDiv(count, left_size);
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value % left_size;
    uint64_t right = value / left_size;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const bool even = round % 2 == 0;
      const auto bits = random.Bits(round << 32 | (even ? right : left));
      const uint64_t noise = uint64_t{bits[0]} << 32 | bits[1];
      if (even) {
        left = (left + noise % left_size) % left_size;
      } else {
        right = (right + noise % right_size) % right_size;
      }
    }
    value = right * left_size + left;
  } while (value >= count);
  return static_cast<int64_t>(value);
}

Sampler::Sampler(const IndexedDataset& dataset, int64_t sequence_length, uint64_t seed,
                 bool shuffle, int64_t lookahead)
    : dataset_(dataset),
      sequence_length_(sequence_length),
      lookahead_(lookahead),
      seed_(seed),
      shuffle_(shuffle) {
  EYRIE_CHECK(sequence_length > 0, "sequence length ", sequence_length);
  windows_ = (dataset.total_tokens() - lookahead) / sequence_length;
  if (windows_ < 1) {
    ThrowBadInput(dataset.prefix(), ".bin: ", dataset.total_tokens(),
                  " tokens, but one sequence takes train.sequence_length",
                  lookahead > 0 ? StrCat(" + ", lookahead) : "", " = ", window_length());
  }
}

int64_t Sampler::WindowOf(int64_t sample) const {
  EYRIE_CHECK(sample >= 0, "sample ", sample);
  const int64_t index = sample % windows_;
  if (!shuffle_) return index;
  const Random random(seed_, StrCat("data order of epoch ", sample / windows_));
  return Permute(random, windows_, index);
}

void Sampler::Read(int64_t sample, int32_t* tokens) const {
  dataset_.Read(FirstToken(sample), window_length(), tokens);
}

}  // namespace eyrie
