#include "core/random.h"

#include <cmath>
#include <numbers>

namespace eyrie {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53u;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u;
constexpr uint32_t kWeyl1 = 0xBB67AE85u;

// Maps 64 bits to the open interval (0, 1). Of them 52 count: with 53, adding one half would round
// the largest up to 1.
double ToUnit(uint32_t high, uint32_t low) {
  const uint64_t bits = (uint64_t{high} << 32 | low) >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace

uint64_t HashName(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

Random::Random(uint64_t seed, std::string_view stream) : seed_(seed), stream_(HashName(stream)) {}

std::array<uint32_t, 4> Random::Bits(uint64_t index) const {
  std::array<uint32_t, 4> counter = {
      static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
      static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
  uint32_t key0 = static_cast<uint32_t>(seed_);
  uint32_t key1 = static_cast<uint32_t>(seed_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

double Random::Uniform(uint64_t index) const {
  const auto bits = Bits(index);
  return ToUnit(bits[0], bits[1]);
}

double Random::Normal(uint64_t index) const {
  const auto bits = Bits(index);
  const double radius = std::sqrt(-2.0 * std::log(ToUnit(bits[0], bits[1])));
  return radius * std::cos(2.0 * std::numbers::pi * ToUnit(bits[2], bits[3]));
}

}  // namespace eyrie
