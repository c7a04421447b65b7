// Stores past the caches: they need not read what they overwrite, which a plain store does, and
// leave in the caches what is there. For outputs so large that they would not stay there anyway.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace eyrie {

// Calls that write at least so many bytes stream them: a core's own caches hold a few MiB.
inline constexpr int64_t kStreamedBytes = int64_t{16} << 20;

namespace streaming {

#if defined(__AVX512F__)
inline constexpr int64_t kVectorBytes = 64;
inline void Move(const char* from, char* to) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
inline constexpr int64_t kVectorBytes = 32;
inline void Move(const char* from, char* to) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__SSE2__)
inline constexpr int64_t kVectorBytes = 16;
inline void Move(const char* from, char* to) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
inline constexpr int64_t kVectorBytes = 1;
inline void Move(const char* from, char* to) { *to = *from; }
#endif

}  // namespace streaming

// to[0, count) := from[0, count), around the caches. Before another thread reads `to`,
// StreamingDone.
template <class T>
void StreamingCopy(const T* from, T* to, int64_t count) {
  using streaming::kVectorBytes;
  const auto* source = reinterpret_cast<const char*>(from);
  auto* target = reinterpret_cast<char*>(to);
  const auto bytes = count * static_cast<int64_t>(sizeof(T));
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(target) % kVectorBytes);
  int64_t at = std::min(bytes, misaligned == 0 ? 0 : kVectorBytes - misaligned);
  std::memcpy(target, source, static_cast<size_t>(at));
  for (; at + kVectorBytes <= bytes; at += kVectorBytes) streaming::Move(source + at, target + at);
  std::memcpy(target + at, source + at, static_cast<size_t>(bytes - at));
}
inline void StreamingDone() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace eyrie
