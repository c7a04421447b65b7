// Training one small model on several layouts under mpirun, and comparing what comes out.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/support/eyrie_process.h"

namespace eyrie {

struct Layout {
  const char* name;
  int tensor, data, ranks;
  int sequence = 1;
};
inline constexpr Layout kOne = {"1", 1, 1, 1}, kT4 = {"t4", 4, 1, 4}, kT2D2 = {"t2d2", 2, 2, 4};

class LayoutsTest : public testing::Test {
 protected:
  LayoutsTest() { WriteTokenFile((directory_ / "data").string(), 200, 64, 1); }

  // Trains in directory `name` and returns its metrics.
  std::vector<nlohmann::json> Train(const std::string& name, const Layout& layout,
                                    const std::vector<std::string>& settings = {}) {
    const std::filesystem::path run = directory_ / name;
    const std::string config = WriteText(directory_ / (name + ".textproto"),
                                         SmallTrainingConfig(directory_ / "data", run));
    const std::vector<std::string> train = WithSettings(
        {"train", "--config", config}, {"parallel.tensor=" + std::to_string(layout.tensor),
                                        "parallel.sequence=" + std::to_string(layout.sequence)});
    const ProcessResult result = RunEyrie(layout.ranks, WithSettings(train, settings));
    EXPECT_EQ(result.code, 0) << name << ": " << result.err << result.out;
    return ReadMetrics(run);
  }

  static void ExpectSame(const std::vector<nlohmann::json>& a, const std::vector<nlohmann::json>& b,
                         double tolerance, const std::string& name) {
    ASSERT_EQ(a.size(), b.size()) << name;
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i]["step"], b[i]["step"]);
      EXPECT_EQ(a[i]["tokens"], b[i]["tokens"]);
      EXPECT_EQ(a[i]["learning_rate"], b[i]["learning_rate"]);
      EXPECT_EQ(a[i].contains("validation_loss"), b[i].contains("validation_loss"));
      if (b[i].contains("validation_accuracy") && tolerance == 0.0) {
        EXPECT_EQ(a[i]["validation_accuracy"], b[i]["validation_accuracy"]) << name;
      }
      for (const char* key : {"loss", "grad_norm", "validation_loss"}) {
        if (!b[i].contains(key)) continue;
        const double x = a[i].at(key), y = b[i].at(key);
        largest = std::max(largest, std::abs(x - y) / y);
        EXPECT_LE(std::abs(x - y), tolerance * y) << name << " step " << i + 1 << " " << key;
      }
    }
    std::printf("%s: largest relative difference %.1e\n", name.c_str(), largest);
  }

  // Trains twice; metrics and shards are the same to the bit.
  void ExpectBitwise(const std::string& a, const std::string& b, const Layout& layout,
                     const std::vector<std::string>& settings = {}) {
    const auto first = Train(a + layout.name, layout, settings);
    const auto second = Train(b + layout.name, layout, settings);
    ExpectSame(first, second, 0.0, layout.name);
    const auto last = [&](const std::string& run) {
      return directory_ / (run + layout.name) / "checkpoints" / "step-00000020";
    };
    for (const auto& entry : std::filesystem::directory_iterator(last(a))) {
      if (entry.path().extension() != ".safetensors") continue;
      EXPECT_EQ(ReadFile(entry.path()), ReadFile(last(b) / entry.path().filename()))
          << entry.path();
    }
  }

  TestDirectory directory_;
};

}  // namespace eyrie
