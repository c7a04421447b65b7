// Synthetic tasks that show what a sequence mixer can do, as token files with given labels
// (data.labels: GIVEN). A sequence is a document of its own, of `length` tokens, and the function
// of a seed and its number alone.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/random.h"

namespace eyrie {

// The random numbers of one sequence, one after another.
class Draws {
 public:
  Draws(const Random& random, int64_t sequence)
      : random_(random), next_(static_cast<uint64_t>(sequence) << 32) {}
  double Uniform() { return random_.Uniform(next_++); }  // in (0, 1)
  // In [begin, end), for ranges far below 2^52.
  int32_t Between(int64_t begin, int64_t end) {
    return static_cast<int32_t>(begin +
                                static_cast<int64_t>(Uniform() * static_cast<double>(end - begin)));
  }

 private:
  const Random& random_;
  uint64_t next_;
};

struct SyntheticTask {
  std::string name;
  int64_t length = 0;      // tokens of a sequence
  int64_t vocab_size = 0;  // ids are below
  // Fills one sequence. Both come with `length` elements: tokens zero and labels -1, which asks for
  // nothing.
  std::function<void(Draws&, std::vector<int32_t>& tokens, std::vector<int32_t>& labels)> draw;
};

// Each throws kBadInput naming the option that does not fit the others.

// Gu and Dao, arXiv:2312.00752, section 4.1, after Jing et al., arXiv:1706.02761: `copied` tokens
// (ids from 2 on) at random places among noise (id 0), then as many markers (id 1), at which they
// are to be told in order. `length` includes the markers.
SyntheticTask SelectiveCopying(int64_t length, int64_t copied, int64_t vocab_size);

// The same section, after Olsson et al., arXiv:2209.11895: random tokens, of which a special one
// (id 0) stands at a random place and at the end; there the token that followed it is to be told.
SyntheticTask InductionHeads(int64_t length, int64_t vocab_size);

// Multi-query associative recall, Arora et al., arXiv:2312.04927, section 4: `pairs` keys (the
// lower half of the ids), all different, each with a value (the upper half); then every key once
// more, at which its value is to be told. Of the distances to these queries small ones are the
// likelier, by a power law, and random values stand between them.
SyntheticTask AssociativeRecall(int64_t length, int64_t pairs, int64_t vocab_size);

// From `shortest` to `length` random bits (ids 0 and 1), at the last of which it is to be told
// whether the number of ones is odd; the rest of the sequence is padding (id 2). As in Beck et al.,
// arXiv:2405.04517, section 4.1.
SyntheticTask Parity(int64_t length, int64_t shortest);

// Writes PREFIX and PREFIX.labels and returns how many labels count. Throws kBadInput if the files
// cannot be created.
int64_t WriteSynthetic(const SyntheticTask& task, const std::string& prefix, int64_t sequences,
                       uint64_t seed);

}  // namespace eyrie
