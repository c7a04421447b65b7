// The benchmarks' tables, not their figures; and what they refuse.
#include "launcher/commands/bench.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

using nlohmann::json;

ProcessResult Bench(int ranks, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  return RunEyrie(ranks, arguments);
}

json JsonOf(const ProcessResult& result) {
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  return json::parse(result.out, nullptr, /*allow_exceptions=*/false);
}

TEST(Bench, KernelsTableHoldsEveryKernel) {
  const json table = JsonOf(
      Bench(0, {"kernels", "--shape", "2,9,64", "--threads", "2", "--repeats", "1", "--json"}));
  ASSERT_TRUE(table.is_object());
  EXPECT_EQ(table["benchmark"], "kernels");
  EXPECT_EQ(table["threads"], 2);
  EXPECT_GT(table["copy GB/s"], 0);
  EXPECT_GT(table["gemm GFLOP/s"], 0);
  std::map<std::string, std::set<std::string>> directions;
  for (const json& row : table["rows"]) {
    directions[row["kernel"]].insert(row["direction"]);
    EXPECT_EQ(row["dtype"], "F32");
    const double ms = row["ms"], megabytes = row["MB"];
    EXPECT_GT(ms, 0) << row;
    EXPECT_GT(megabytes, 0) << row;
    EXPECT_NEAR(row["GB/s"].get<double>(), megabytes / ms, 1e-6 * megabytes / ms);
    const bool products = row["ceiling"] == "gemm";
    EXPECT_EQ(row["GFLOP/s"].is_null(), !products) << row;
    const double rate = row[products ? "GFLOP/s" : "GB/s"];
    const double ceiling = table[products ? "gemm GFLOP/s" : "copy GB/s"];
    EXPECT_NEAR(row["share"].get<double>(), rate / ceiling, 1e-6 * rate / ceiling) << row;
  }
  // Every kernel of kernels/, by its folder's or header's name.
  const std::set<std::string> names = {
      "adamw",         "attention",   "block_map",   "causal_conv1d",
      "cross_entropy", "elementwise", "embedding",   "gated_layer_norm",
      "gated_norm",    "glu",         "layer_norm",  "lightning_attention",
      "lrpe",          "mlstm",       "mlstm_gates", "mlstm_wide",
      "rg_lru",        "rms_norm",    "rotary",      "selective_scan",
      "slstm"};
  EXPECT_EQ(directions.size(), names.size());
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(EYRIE_SOURCE_DIR) / "kernels")) {
    if (!entry.is_directory()) continue;
    const std::string folder = entry.path().filename();
    EXPECT_TRUE(directions.contains(folder == "norm" ? "rms_norm" : folder)) << folder;
  }
  for (const char* name :
       {"attention", "block_map", "causal_conv1d", "cross_entropy", "embedding", "gated_layer_norm",
        "gated_norm", "glu", "layer_norm", "lightning_attention", "lrpe", "mlstm", "mlstm_gates",
        "mlstm_wide", "rg_lru", "rms_norm", "rotary", "selective_scan", "slstm"}) {
    EXPECT_TRUE(directions[name].contains("backward")) << name;
  }
}

TEST(Bench, KernelsCountTheBytesThatMustMove) {
  const json table = JsonOf(
      Bench(0, {"kernels", "--filter", "rg_lru", "--shape", "1,8,64", "--repeats", "1", "--json"}));
  const double tensor = 8 * 64 * 4 / 1e6;
  std::map<std::string, double> megabytes;
  for (const json& row : table["rows"]) {
    EXPECT_EQ(row["kernel"], "rg_lru");
    EXPECT_EQ(row["shape"], "[1, 8, 64]");
    megabytes[row["direction"]] = row["MB"];
  }
  EXPECT_EQ(megabytes.size(), 4u);
  EXPECT_NEAR(megabytes["forward"], 4 * tensor, 1e-9);
  EXPECT_NEAR(megabytes["backward"], 8 * tensor, 1e-9);
}

TEST(Bench, KernelsPrintAnAlignedTable) {
  const ProcessResult result = Bench(0, {"kernels", "--filter", "glu", "--filter", "elementwise",
                                         "--shape", "1,8,64", "--repeats", "1"});
  EXPECT_EQ(result.code, 0) << result.err;
  std::istringstream in(result.out);
  std::vector<std::string> rows;
  for (std::string line; std::getline(in, line);) {
    if (!rows.empty() || line.rfind("kernel ", 0) == 0) rows.push_back(line);
  }
  ASSERT_EQ(rows.size(), 1u + 3u + 3u) << result.out;
  const size_t column = rows[0].find("direction");
  for (const std::string& row : rows) {
    EXPECT_EQ(row.find_first_not_of(' ', row.find(' ')), column) << result.out;
    EXPECT_EQ(row.size(), rows[0].size()) << result.out;
  }
}

TEST(Bench, KernelsRefuseBadInput) {
  ExpectRefused(Bench(0, {"kernels", "--filter", "rg_lru", "--filter", "rglru"}),
                {"rglru", "no such kernel", "rg_lru, rms_norm"});
  ExpectRefused(Bench(0, {"kernels", "--shape", "1,2"}), {"--shape"});
  ExpectRefused(Bench(0, {"kernels", "--shape", "1,0,64"}), {"--shape", "0"});
  ExpectRefused(Bench(0, {"kernels", "--shape", "1,2,6"}), {"--shape", "multiple of 4", "6"});
  ExpectRefused(Bench(0, {"kernels", "--threads", "-1"}), {"--threads", "-1"});
  ExpectRefused(Bench(0, {}), {"subcommand"});
}

class BenchConfigTest : public testing::Test {
 protected:
  // No token files, and no run directory: none is needed.
  BenchConfigTest()
      : config_(WriteText(directory_ / "config.textproto",
                          SmallTrainingConfig(directory_ / "no-data", directory_ / "no-run"))) {}
  TestDirectory directory_;
  std::string config_;
};

TEST_F(BenchConfigTest, StepOnAnyLayout) {
  for (const auto& [ranks, setting] : std::vector<std::pair<int, std::string>>{
           {0, "train.recompute=BLOCKS"}, {4, "parallel.tensor=2"}, {2, "parallel.sequence=2"}}) {
    const json table = JsonOf(
        Bench(ranks, {"step", "--config", config_, "--set", setting, "--steps", "2", "--json"}));
    ASSERT_TRUE(table.is_object());
    ASSERT_EQ(table["rows"].size(), 1u);
    const json row = table["rows"][0];
    EXPECT_EQ(row["ranks"], std::max(ranks, 1));
    EXPECT_EQ(row["tokens"], 8 * 32);
    EXPECT_GT(row["tokens/s"], 0);
    const double mfu = row["GFLOP/s"].get<double>() / table["gemm GFLOP/s"].get<double>();
    EXPECT_NEAR(row["MFU"].get<double>(), mfu, 1e-6 * mfu);
    // One block of local attention: 4 heads of 8, a window of 12 and the token itself.
    const double keys = (13 * 14 / 2 + (32 - 13) * 13) / 32.0;
    EXPECT_NEAR(table["FLOPs a token"].get<double>(),
                6 * row["parameters"].get<double>() + 12 * 32 * keys, 1);
    EXPECT_FALSE(std::filesystem::exists(directory_ / "no-run"));
  }
}

TEST_F(BenchConfigTest, StepByKernel) {
  for (const int ranks : {0, 2}) {
    std::vector<std::string> arguments = {"step", "--config",  config_, "--steps",
                                          "3",    "--kernels", "--json"};
    if (ranks > 0) arguments.insert(arguments.end(), {"--set", "parallel.tensor=2"});
    const json table = JsonOf(Bench(ranks, arguments));
    ASSERT_TRUE(table.is_object());
    double milliseconds = 0, shares = 0, previous = std::numeric_limits<double>::infinity();
    std::map<std::string, int> calls;
    for (const json& row : table["rows"]) {
      calls[row["kernel"]] = row["calls"];
      const double ms = row["ms"];
      EXPECT_GT(ms, 0) << row;
      milliseconds += ms;
      shares += row["share"].get<double>();
      if (row["kernel"] == "other") continue;
      EXPECT_LE(ms, previous) << "in falling order";
      previous = ms;
    }
    EXPECT_EQ(table["rows"].back()["kernel"], "other");
    EXPECT_NEAR(milliseconds, table["ms a step"].get<double>(), 1e-9 * milliseconds);
    EXPECT_NEAR(shares, 1, 1e-9);
    for (const char* kind : {"gemm", "rg_lru", "causal_conv1d", "norm", "glu", "attention",
                             "rotary", "embedding", "cross_entropy", "adamw", "copies"}) {
      EXPECT_GT(calls[kind], 0) << kind;
    }
    EXPECT_EQ(calls.contains("communication"), ranks > 0);
    EXPECT_EQ(calls["other"], 1);

    // A plan counts the same calls, bytes and products, without a step being run.
    std::vector<std::string> plan = {
        "plan",       "--json",
        "--config",   config_,
        "--ranks",    std::to_string(std::max(ranks, 1)),
        "--hardware", EYRIE_SOURCE_DIR "/configs/hardware/laptop.textproto"};
    if (ranks > 0) plan.insert(plan.end(), {"--set", "parallel.tensor=2"});
    const json planned = json::parse(RunEyrie(0, plan).out)["kernels"];
    for (const json& row : table["rows"]) {
      const std::string kind = row["kernel"];
      if (kind == "other" || kind == "communication" || kind == "copies") continue;
      const json& counted = planned[kind];
      EXPECT_EQ(row["calls"], counted["calls"]) << kind;
      const double scale = row["ms"].get<double>() * 1e6;
      const auto expect = [&](const char* rate, const char* count) {
        const double expected = counted[count];
        EXPECT_NEAR(row[rate].get<double>() * scale, expected, 1e-6 * expected) << kind;
      };
      expect("GB/s", "bytes");
      expect("GFLOP/s", "products");
    }
  }
}

TEST_F(BenchConfigTest, DecodeAtAPosition) {
  for (const int ranks : {0, 2}) {
    const json table = JsonOf(Bench(ranks, {"decode", "--config", config_, "--batch", "3",
                                            "--position", "300", "--tokens", "2", "--json"}));
    ASSERT_TRUE(table.is_object());
    ASSERT_EQ(table["rows"].size(), 1u);
    const json row = table["rows"][0];
    EXPECT_EQ(row["ranks"], std::max(ranks, 1));
    EXPECT_EQ(row["batch"], 3);
    EXPECT_EQ(row["position"], 300);
    EXPECT_GE(row["MB"].get<double>(), row["parameters"].get<double>() * 4 / 1e6 - 1e-6);
    EXPECT_GT(row["tokens/s"], 0);
  }
}

TEST_F(BenchConfigTest, RefuseBadInput) {
  ExpectRefused(Bench(0, {"step"}), {"--config"});
  ExpectRefused(Bench(0, {"step", "--config", config_ + "-missing"}), {config_ + "-missing"});
  ExpectRefused(Bench(0, {"step", "--config", config_, "--set", "train.stepz=1"}), {"stepz"});
  ExpectRefused(Bench(0, {"step", "--config", config_, "--set", "parallel.tensor=3"}),
                {"model.attention.heads"});
  ExpectRefused(Bench(0, {"decode"}), {"--config", "--checkpoint"});
  ExpectRefused(Bench(0, {"decode", "--config", config_, "--position", "-1"}), {"--position"});
  ExpectRefused(Bench(0, {"decode", "--checkpoint", (directory_ / "none").string()}),
                {(directory_ / "none").string()});
}

TEST(Bench, MedianOfOddAndEvenCounts) {
  EXPECT_EQ(Median({3}), 3);
  EXPECT_EQ(Median({5, 1, 3}), 3);
  EXPECT_EQ(Median({4, 1, 3, 2}), 2.5);
}

}  // namespace
}  // namespace eyrie
