#include "launcher/config_options.h"

#include <CLI/CLI.hpp>

#include "launcher/config.h"

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

}  // namespace eyrie
