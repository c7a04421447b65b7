// Numbers that no configuration means.
#pragma once

#include "configs/schema/config.pb.h"
#include "layers/registry.h"

namespace eyrie {

// A process with many more threads does not start.
constexpr int kMostThreads = 1024;

// Refuses NaN and infinities wherever they stand in a message, and sizes and times of a
// configuration beyond all use, whose products overflow or whose memory takes minutes to run out.
// Fields are named with `path` before them.
void ValidateLimits(const google::protobuf::Message& message, const std::string& path,
                    ConfigErrors& errors);
// The same of sizes that single fields do not say, of a valid model.
void ValidateSize(const config::Config& config, ConfigErrors& errors);

}  // namespace eyrie
