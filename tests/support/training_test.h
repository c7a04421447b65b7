// What tests of `eyrie train` as a user meets it share: a token file and a small configuration.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/eyrie_process.h"

namespace eyrie {

class TrainingTest : public testing::Test {
 protected:
  TrainingTest() { WriteTokenFile(data_, /*documents=*/100, /*vocab=*/64, /*seed=*/3); }

  // `eyrie train`'s arguments with these settings, and such a run of `ranks` ranks (0: alone).
  std::vector<std::string> Arguments(const std::vector<std::string>& settings) const {
    return WithSettings({"train", "--config", config_}, settings);
  }
  ProcessResult Train(int ranks, const std::vector<std::string>& settings) const {
    return RunEyrie(ranks, Arguments(settings));
  }

  const TestDirectory directory_;
  const std::filesystem::path run_ = directory_ / "run";
  const std::string data_ = (directory_ / "data").string();
  const std::string config_ =
      WriteText(directory_ / "config.textproto", SmallTrainingConfig(data_, run_));
};

}  // namespace eyrie
