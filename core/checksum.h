// The checksum of stored bytes: XXH3, 64 bits. https://github.com/Cyan4973/xxHash
#pragma once

#include <cstddef>
#include <cstdint>

namespace eyrie {

uint64_t Checksum(const void* data, size_t bytes);

}  // namespace eyrie
