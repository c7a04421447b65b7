#include "launcher/synthetic.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "launcher/indexed_dataset.h"

namespace eyrie {
namespace {

// Of the distances between a key's value and its query, as in the paper's appendix.
constexpr double kRecallPower = 0.1;

// The first `count` of a random permutation of [0, size).
std::vector<int32_t> Choose(Draws& draws, int64_t size, int64_t count) {
  std::vector<int32_t> all(static_cast<size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) {
    std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(draws.Between(i, size))]);
  }
  all.resize(static_cast<size_t>(count));
  return all;
}

// `count` different numbers of [0, size) in random order; number i with a weight of (i + 1)^(power
// - 1). Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006.
std::vector<int32_t> ChooseNear(Draws& draws, int64_t size, int64_t count, double power) {
  std::vector<std::pair<double, int32_t>> keys;
  for (int32_t i = 0; i < size; ++i) {
    keys.emplace_back(std::log(draws.Uniform()) * std::pow(i + 1.0, 1.0 - power), i);
  }
  std::partial_sort(keys.begin(), keys.begin() + count, keys.end(), std::greater<>());
  std::vector<int32_t> chosen;
  for (const int32_t i : Choose(draws, count, count)) {
    chosen.push_back(keys[static_cast<size_t>(i)].second);
  }
  return chosen;
}

// Refuses an option below `least`.
void Require(const char* option, int64_t value, int64_t least, const std::string& why) {
  if (value < least) ThrowBadInput(option, ": ", value, " is less than ", least, ", ", why);
}

}  // namespace

SyntheticTask SelectiveCopying(int64_t length, int64_t copied, int64_t vocab_size) {
  Require("--copied", copied, 1, "one token to copy");
  Require("--vocab", vocab_size, 4, "noise, the marker and two tokens to copy");
  Require("--length", length, 2 * copied, StrCat("--copied ", copied, " tokens and their markers"));
  const auto draw = [=](Draws& draws, std::vector<int32_t>& tokens, std::vector<int32_t>& labels) {
    const int64_t region = length - copied;
    int64_t taken = 0;
    for (int64_t t = 0; t < region; ++t) {
      // So that every choice of places is equally likely.
      if (draws.Between(0, region - t) >= copied - taken) continue;
      const auto place = static_cast<size_t>(t), marker = static_cast<size_t>(region + taken++);
      tokens[place] = draws.Between(2, vocab_size);
      tokens[marker] = 1;
      labels[marker] = tokens[place];
    }
  };
  return {"selective-copying", length, vocab_size, draw};
}

SyntheticTask InductionHeads(int64_t length, int64_t vocab_size) {
  Require("--vocab", vocab_size, 3, "the special token and two others");
  Require("--length", length, 3, "the special token twice and the one to tell");
  const auto draw = [=](Draws& draws, std::vector<int32_t>& tokens, std::vector<int32_t>& labels) {
    for (int32_t& token : tokens) token = draws.Between(1, vocab_size);
    const auto place = static_cast<size_t>(draws.Between(0, length - 2));
    tokens[place] = tokens.back() = 0;
    labels.back() = tokens[place + 1];
  };
  return {"induction-heads", length, vocab_size, draw};
}

SyntheticTask AssociativeRecall(int64_t length, int64_t pairs, int64_t vocab_size) {
  Require("--pairs", pairs, 1, "one pair of key and value");
  Require("--vocab", vocab_size, 2 * pairs, StrCat("--pairs ", pairs, " keys and as many values"));
  Require("--length", length, 4 * pairs,
          StrCat("--pairs ", pairs, " pairs, and twice as many places for queries"));
  const auto draw = [=](Draws& draws, std::vector<int32_t>& tokens, std::vector<int32_t>& labels) {
    const int64_t keys = vocab_size / 2;
    for (int32_t& token : tokens) token = draws.Between(keys, vocab_size);
    const std::vector<int32_t> key = Choose(draws, keys, pairs);
    // A query takes two places, like a pair.
    const std::vector<int32_t> gap =
        ChooseNear(draws, (length - 2 * pairs) / 2, pairs, kRecallPower);
    for (size_t i = 0; i < key.size(); ++i) {
      tokens[2 * i] = key[i];
      const size_t query = 2 * (key.size() + static_cast<size_t>(gap[i]));
      tokens[query] = key[i];
      labels[query] = tokens[2 * i + 1];
    }
  };
  return {"associative-recall", length, vocab_size, draw};
}

SyntheticTask Parity(int64_t length, int64_t shortest) {
  Require("--shortest", shortest, 1, "one bit");
  Require("--length", length, shortest, "--shortest");
  const auto draw = [=](Draws& draws, std::vector<int32_t>& tokens, std::vector<int32_t>& labels) {
    const auto bits = static_cast<size_t>(draws.Between(shortest, length + 1));
    int32_t odd = 0;
    for (size_t t = 0; t < bits; ++t) odd ^= tokens[t] = draws.Between(0, 2);
    std::fill(tokens.begin() + static_cast<int64_t>(bits), tokens.end(), 2);
    labels[bits - 1] = odd;
  };
  return {"parity", length, 3, draw};
}

int64_t WriteSynthetic(const SyntheticTask& task, const std::string& prefix, int64_t sequences,
                       uint64_t seed) {
  const Random random(seed, task.name);
  IndexedDatasetWriter tokens_out(prefix, task.vocab_size);
  IndexedDatasetWriter labels_out(prefix + ".labels", task.vocab_size + 1);
  std::vector<int32_t> tokens, labels;
  int64_t counted = 0;
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    tokens.assign(static_cast<size_t>(task.length), 0);
    labels.assign(static_cast<size_t>(task.length), -1);
    Draws draws(random, sequence);
    task.draw(draws, tokens, labels);
    for (int32_t& label : labels) counted += ++label > 0 ? 1 : 0;
    tokens_out.AddDocument(tokens);
    labels_out.AddDocument(labels);
  }
  labels_out.Finish();
  tokens_out.Finish();
  return counted;
}

}  // namespace eyrie
