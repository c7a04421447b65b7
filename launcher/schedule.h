// The learning rate over a run.
#pragma once

#include "configs/schema/config.pb.h"

namespace eyrie {

// The rate of step `step` (counted from 1) of `steps`. It rises linearly over the first
// warmup_steps to the peak, then follows the schedule to final_rate_fraction of it at the last step
// (CONSTANT stays; WARMUP_STABLE_DECAY stays, then falls linearly over the last decay_steps).
double LearningRate(const config::OptimizerConfig& config, int64_t steps, int64_t step);

}  // namespace eyrie
