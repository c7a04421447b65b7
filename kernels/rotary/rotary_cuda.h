// The CUDA body behind rotary.h; arguments are already validated.
#pragma once

#include "kernels/rotary/rotary.h"

namespace eyrie {

void RotaryCuda(const RotaryArgs& args);

}  // namespace eyrie
