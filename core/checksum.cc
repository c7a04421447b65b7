#include "core/checksum.h"

#include <xxhash.h>

namespace eyrie {

uint64_t Checksum(const void* data, size_t bytes) { return XXH3_64bits(data, bytes); }

struct RunningChecksum::State {
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> xxh3{XXH3_createState(),
                                                                &XXH3_freeState};
};

RunningChecksum::RunningChecksum() : state_(std::make_unique<State>()) {
  XXH3_64bits_reset(state_->xxh3.get());
}
RunningChecksum::~RunningChecksum() = default;
void RunningChecksum::Add(const void* data, size_t bytes) {
  XXH3_64bits_update(state_->xxh3.get(), data, bytes);
}
uint64_t RunningChecksum::value() const { return XXH3_64bits_digest(state_->xxh3.get()); }

}  // namespace eyrie
