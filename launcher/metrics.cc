#include "launcher/metrics.h"

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "parallel/mpi_communicator.h"

namespace eyrie {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

MetricsWriter::MetricsWriter(const fs::path& directory, int64_t last_step)
    : file_(directory / "metrics.jsonl") {
  const fs::path kept = directory / "metrics.jsonl.new";
  {
    std::ifstream in(file_);
    std::ofstream out(kept, std::ios::trunc);
    for (std::string line; std::getline(in, line);) {
      const auto object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      // A line cut short by a crash is dropped with those that follow the checkpoint.
      if (!object.is_object() || !object.contains("step")) continue;
      if (object["step"].is_number_integer() && object["step"].get<int64_t>() <= last_step) {
        out << line << "\n";
      }
    }
    if (!out.flush()) ThrowFailure(kept.string(), ": cannot write");
  }
  fs::rename(kept, file_);
  out_.open(file_, std::ios::app);
  if (!out_) ThrowFailure(file_.string(), ": cannot open for writing");
}

void MetricsWriter::Write(const StepMetrics& metrics) {
  ordered_json object = {{"step", metrics.step},
                         {"loss", metrics.loss},
                         {"grad_norm", metrics.grad_norm},
                         {"learning_rate", metrics.learning_rate},
                         {"tokens", metrics.tokens},
                         {"step_seconds", metrics.step_seconds},
                         {"tokens_per_second", metrics.tokens_per_second}};
  if (metrics.validation_loss) object["validation_loss"] = *metrics.validation_loss;
  if (metrics.validation_accuracy) object["validation_accuracy"] = *metrics.validation_accuracy;
  out_ << object.dump() << std::endl;
  if (!out_) ThrowFailure(file_.string(), ": cannot write");
}

ProgressLine::ProgressLine(config::RunConfig::Progress style, int64_t steps) : steps_(steps) {
  // Open MPI gives its ranks a pseudo-terminal, wherever their output goes in the end.
  const bool terminal = isatty(STDOUT_FILENO) != 0 && !LaunchedByMpi();
  live_ = style == config::RunConfig::LIVE || (style == config::RunConfig::AUTO && terminal);
}

void ProgressLine::Show(const StepMetrics& metrics) {
  if (metrics.validation_loss) validation_loss_ = metrics.validation_loss;
  // A moving average forgets a slow start.
  mean_step_seconds_ = mean_step_seconds_ == 0.0
                           ? metrics.step_seconds
                           : 0.9 * mean_step_seconds_ + 0.1 * metrics.step_seconds;
  const auto left =
      static_cast<int64_t>(mean_step_seconds_ * static_cast<double>(steps_ - metrics.step) + 0.5);
  char validation[32] = "";
  if (validation_loss_) {
    std::snprintf(validation, sizeof validation, "  validation %.4f", *validation_loss_);
  }
  std::printf("%sstep %lld/%lld  loss %.4f%s  %.0f tokens/s  %lld:%02lld left%s",
              live_ ? "\r\x1b[K" : "", static_cast<long long>(metrics.step),
              static_cast<long long>(steps_), metrics.loss, validation, metrics.tokens_per_second,
              static_cast<long long>(left / 60), static_cast<long long>(left % 60),
              live_ ? "" : "\n");
  std::fflush(stdout);
  shown_ = true;
}

ProgressLine::~ProgressLine() {
  if (!shown_ || !live_) return;
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace eyrie
