// The hardware that `eyrie plan` predicts for.
#pragma once

#include <string>

#include "configs/schema/hardware.pb.h"
#include "core/tensor.h"

namespace eyrie {

// Reads a text-format Hardware; "" is the schema's defaults. Throws kBadInput naming the file and
// the field.
config::Hardware LoadHardware(const std::string& file);

// What a run on it computes on.
Device DeviceOf(const config::Hardware& hardware);

}  // namespace eyrie
