// The CUDA bodies behind glu.h; arguments are already validated.
#pragma once

#include "kernels/glu/glu.h"

namespace eyrie {

void GluForwardCuda(const GluForwardArgs& args);
void GluBackwardCuda(const GluBackwardArgs& args);

}  // namespace eyrie
