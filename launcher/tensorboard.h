// TensorBoard event files: TFRecords of the messages in configs/schema/tensorboard.proto. Used on
// the root rank alone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "configs/schema/tensorboard.pb.h"
#include "launcher/metrics.h"

namespace eyrie {

class TensorboardWriter {
 public:
  // Opens a new file in `directory`, events.out.tfevents.TIME.HOST, for the steps after
  // `last_step`. What earlier files say of these steps TensorBoard then drops.
  TensorboardWriter(const std::filesystem::path& directory, int64_t last_step);
  // Appends one event with the step's scalars, and flushes. Throws kFailed when the disk is full.
  void Write(const StepMetrics& metrics);

 private:
  // Appends one record and flushes.
  void Append(tensorboard::Event& event);

  std::filesystem::path file_;
  std::ofstream out_;
};

}  // namespace eyrie
