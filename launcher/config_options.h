// The configuration that a command line names.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.pb.h"

namespace CLI {
class App;
}

namespace eyrie {

struct ConfigOptions {
  std::string file;
  std::vector<std::string> settings;

  // The file's, with the settings. Throws kBadInput naming the line or the setting at fault.
  config::Config Load() const;
};

// Adds --config and --set to a command.
void AddConfigOptions(CLI::App& command, ConfigOptions& options);
// Adds --set alone.
void AddSettings(CLI::App& command, std::vector<std::string>& settings, const std::string& meaning);

}  // namespace eyrie
