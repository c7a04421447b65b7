// Numbers that no configuration means.
#pragma once

#include "configs/schema/config.pb.h"
#include "layers/registry.h"

namespace eyrie {

// A process with many more threads does not start.
constexpr int kMostThreads = 1024;

// Refuses NaN and infinities wherever they stand, and sizes beyond all models, whose products
// overflow or whose memory takes minutes to run out.
void ValidateLimits(const config::Config& config, ConfigErrors& errors);
// The same of sizes that single fields do not say, of a valid model.
void ValidateSize(const config::Config& config, ConfigErrors& errors);

}  // namespace eyrie
