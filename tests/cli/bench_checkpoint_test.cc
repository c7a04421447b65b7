// eyrie bench checkpoint, on a model of no size.
#include <gtest/gtest.h>

#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

TEST(BenchCheckpointTest, MeasuresAndLeavesNothing) {
  const TestDirectory directory;
  const std::string config = WriteText(directory / "config.textproto",
                                       SmallTrainingConfig(directory / "none", directory / "none"));
  fs::create_directory(directory / "disk");
  const auto run = [&](int ranks, const std::string& disk) {
    return RunEyrie(ranks, {"bench", "checkpoint", "--config", config, "--directory",
                            (directory / disk).string(), "--repeats", "2", "--json"});
  };
  for (const int ranks : {0, 2}) {
    const ProcessResult result = run(ranks, "disk");
    ASSERT_EQ(result.code, 0) << result.err;
    const auto report = nlohmann::json::parse(result.out);
    ASSERT_EQ(report["rows"].size(), 3u) << result.out;
    for (const auto& row : report["rows"]) EXPECT_GT(row["GB/s"], 0.0) << result.out;
    EXPECT_TRUE(fs::is_empty(directory / "disk"));
  }
  for (const int ranks : {0, 2}) {
    const ProcessResult result = run(ranks, "missing");
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_NE(OnlyLine(result).find("--directory " + (directory / "missing").string()),
              std::string::npos)
        << result.err;
    EXPECT_FALSE(fs::exists(directory / "missing"));
  }
}

}  // namespace
}  // namespace eyrie
