// The driver without libFuzzer: runs a target on its seeds, on what is left of them when cut short,
// and on random changes of them, the same in every run.
#include <random>

#include "tests/fuzz/fuzz.h"

namespace {

std::string Changed(std::string input, std::mt19937& random) {
  const auto below = [&](size_t limit) { return random() % std::max<size_t>(limit, 1); };
  for (size_t change = 1 + below(4); change > 0 && !input.empty(); --change) {
    const size_t at = below(input.size());
    switch (below(5)) {
      case 0: input[at] = static_cast<char>(random()); break;
      case 1: input[at] = static_cast<char>(input[at] ^ (1 << below(8))); break;
      case 2: input.erase(at, 1 + below(8)); break;
      case 3: input.insert(at, input.substr(below(input.size()), 1 + below(16))); break;
      case 4: input.insert(at, 1 + below(8), static_cast<char>(random())); break;
    }
  }
  return input;
}

}  // namespace

int main() {
  const auto run = [](const std::string& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  };
  constexpr int kChanges = 5000;
  std::mt19937 random(1);
  int count = 0;
  for (const std::string& seed : eyrie::FuzzSeeds()) {
    run(seed);
    for (size_t size = 0; size < seed.size(); size += 1 + seed.size() / 256) {
      run(seed.substr(0, size));
    }
    for (int i = 0; i < kChanges; ++i) run(Changed(seed, random));
    count += kChanges;
  }
  std::printf("%d changed inputs\n", count);
  return count > 0 ? 0 : 1;
}
