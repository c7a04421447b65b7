#include "launcher/commands/options.h"

#include <CLI/CLI.hpp>
#include <iomanip>

#include "core/error.h"
#include "launcher/config.h"
#include "launcher/inference.h"

namespace eyrie {

config::Config ConfigOptions::Load() const {
  config::Config config = LoadConfig(file);
  ApplySettings(settings, config);
  return config;
}

void AddConfigOptions(CLI::App& command, ConfigOptions& options) {
  command.add_option("--config", options.file, "configuration file (text format)")
      ->required()
      ->type_name("FILE");
  AddSettings(command, options.settings,
              "set one field, e.g. --set train.steps=200; may be repeated");
}

void AddSettings(CLI::App& command, std::vector<std::string>& settings,
                 const std::string& meaning) {
  command.add_option("--set", settings, meaning)->type_name("PATH=VALUE")->allow_extra_args(false);
}

void AddInferenceOptions(CLI::App& command, InferenceOptions& options) {
  command
      .add_option("--checkpoint", options.checkpoint,
                  "a checkpoint, or a run directory for its newest one")
      ->required()
      ->type_name("DIR");
  AddSettings(command, options.settings,
              "set a field of the checkpoint's configuration, e.g. --set run.threads=4");
}

CLI::Validator Within(double least, double most, const std::string& kind) {
  const auto check = [=](const std::string& text) -> std::string {
    double value = 0.0;
    if (!CLI::detail::lexical_cast(text, value)) return "\"" + text + "\" is not a number";
    if (value >= least && value <= most) return "";
    return StrCat(std::setprecision(10), text, " is not a number from ", least, " to ", most);
  };
  return CLI::Validator(check, kind);
}

CLI::Validator PositiveCount() { return Within(1, kMostOfACount, "POSITIVE"); }
CLI::Validator NonNegativeCount() { return Within(0, kMostOfACount, "NONNEGATIVE"); }

}  // namespace eyrie
