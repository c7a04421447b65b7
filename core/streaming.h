// Stores past the caches, for outputs that are larger than these and not read soon. An ordinary
// store first reads the line it is going to overwrite, which costs a kernel that is bound by memory
// a third of its traffic.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace eyrie {

// Copies `count` floats, which are a multiple of a cache line, between lines.
inline void StreamingCopy(const float* from, float* to, int64_t count) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
  _mm_sfence();
#elif defined(__AVX__)
  for (int64_t i = 0; i < count; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
  _mm_sfence();
#elif defined(__SSE2__)
  for (int64_t i = 0; i < count; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
  _mm_sfence();
#else
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
#endif
}

}  // namespace eyrie
