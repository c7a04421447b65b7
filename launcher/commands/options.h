// Options that several commands take: a configuration, a checkpoint, numbers within bounds.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.pb.h"

namespace CLI {
class App;
class Validator;
}  // namespace CLI

namespace eyrie {

struct InferenceOptions;  // launcher/inference.h

// The configuration that a command line names.
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
// Adds --checkpoint and --set to a command.
void AddInferenceOptions(CLI::App& command, InferenceOptions& options);

// What numbers on the command line must be: CLI11's own checks let NaN pass, and spell out the
// largest double where they refuse. Sizes larger than this are mistakes, and their products
// overflow.
constexpr double kMostOfACount = 1 << 30;

// Refuses what is not a number in [least, most]. `kind` stands in the help, e.g. "POSITIVE".
CLI::Validator Within(double least, double most, const std::string& kind);
CLI::Validator PositiveCount();     // from 1 to kMostOfACount
CLI::Validator NonNegativeCount();  // from 0 to kMostOfACount

}  // namespace eyrie
