// Counter-based random numbers: the value drawn for (seed, stream, index) depends on nothing else,
// so every rank of every layout can compute just the part it owns.
// Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace eyrie {

class Random {
 public:
  // `stream` names what is drawn, e.g. a parameter's name.
  Random(uint64_t seed, std::string_view stream);

  // 128 random bits for this index.
  std::array<uint32_t, 4> Bits(uint64_t index) const;
  // Uniform in (0, 1), 52 bits.
  double Uniform(uint64_t index) const;
  // Standard normal (Box-Muller on the bits of this index).
  double Normal(uint64_t index) const;

 private:
  uint64_t seed_;
  uint64_t stream_;
};

// FNV-1a, 64 bits: a fixed hash of a name, the same on every platform.
uint64_t HashName(std::string_view name);

}  // namespace eyrie
