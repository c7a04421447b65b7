#include "launcher/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace eyrie {

double LearningRate(const config::OptimizerConfig& config, int64_t steps, int64_t step) {
  const double peak = config.learning_rate(), last = peak * config.final_rate_fraction();
  const int64_t warmup = config.warmup_steps();
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);

  // How far the falling part has come, from 0 to 1.
  int64_t fall_begins = warmup;
  if (config.schedule() == config::OptimizerConfig::WARMUP_STABLE_DECAY) {
    fall_begins = std::max(warmup, steps - config.decay_steps());
  }
  const double done = static_cast<double>(std::max<int64_t>(0, step - fall_begins)) /
                      static_cast<double>(std::max<int64_t>(1, steps - fall_begins));
  const double fall = std::clamp(done, 0.0, 1.0);
  switch (config.schedule()) {
    case config::OptimizerConfig::CONSTANT: return peak;
    case config::OptimizerConfig::COSINE:
      return last + (peak - last) * 0.5 * (1.0 + std::cos(std::numbers::pi * fall));
    case config::OptimizerConfig::LINEAR:
    case config::OptimizerConfig::WARMUP_STABLE_DECAY: return peak + (last - peak) * fall;
  }
  return peak;
}

}  // namespace eyrie
