// The checksum of stored bytes: XXH3, 64 bits. https://github.com/Cyan4973/xxHash
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

struct XXH3_state_s;

namespace eyrie {

uint64_t Checksum(const void* data, size_t bytes);

// The same of bytes that come piece by piece.
class RunningChecksum {
 public:
  RunningChecksum();

  void Add(const void* data, size_t bytes);
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace eyrie
