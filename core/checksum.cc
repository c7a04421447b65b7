#include "core/checksum.h"

#include <xxhash.h>

namespace eyrie {

uint64_t Checksum(const void* data, size_t bytes) { return XXH3_64bits(data, bytes); }

void RunningChecksum::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }
RunningChecksum::RunningChecksum() : state_(XXH3_createState()) { XXH3_64bits_reset(state_.get()); }
void RunningChecksum::Add(const void* data, size_t bytes) {
  XXH3_64bits_update(state_.get(), data, bytes);
}
uint64_t RunningChecksum::value() const { return XXH3_64bits_digest(state_.get()); }

}  // namespace eyrie
