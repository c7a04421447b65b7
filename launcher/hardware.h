// The hardware that `eyrie plan` predicts for.
#pragma once

#include <string>

#include "configs/schema/hardware.pb.h"
#include "core/precision.h"

namespace eyrie {

// Reads a text-format Hardware; "" is the schema's defaults. Throws kBadInput naming the file and
// the field.
config::Hardware LoadHardware(const std::string& file);

// The element types of a training run on such a device.
Precision PrecisionOf(config::Hardware::Device device);

}  // namespace eyrie
