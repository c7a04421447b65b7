// metrics.jsonl and the progress line of a training run. Used on the root rank alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>

#include "configs/schema/config.pb.h"

namespace eyrie {

struct StepMetrics {
  int64_t step = 0;   // optimiser steps done
  double loss = 0.0;  // nats a token, over the global batch
  double grad_norm = 0.0;
  double learning_rate = 0.0;
  int64_t tokens = 0;  // trained on so far
  double step_seconds = 0.0;
  double tokens_per_second = 0.0;
  std::optional<double> validation_loss, validation_accuracy;
};

class MetricsWriter {
 public:
  // Continues `directory`/metrics.jsonl after `last_step`: later lines, of a run that was cut off,
  // are dropped.
  MetricsWriter(const std::filesystem::path& directory, int64_t last_step);
  // Appends one object and flushes. Throws kFailed when the disk is full.
  void Write(const StepMetrics& metrics);

 private:
  std::filesystem::path file_;
  std::ofstream out_;
};

class ProgressLine {
 public:
  ProgressLine(config::RunConfig::Progress style, int64_t steps);
  ~ProgressLine();
  // Whether it rewrites one line, and so may be shown every step.
  bool live() const { return live_; }
  // Shows one step on stdout, with the time that the remaining ones will take.
  void Show(const StepMetrics& metrics);

 private:
  bool live_;
  int64_t steps_;
  double mean_step_seconds_ = 0.0;
  std::optional<double> validation_loss_;
  bool shown_ = false;
};

}  // namespace eyrie
