// eyrie plan: what it prints, what it refuses, and its memory against that of real runs.
#include <algorithm>
#include <map>

#include "core/error.h"
#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

const std::string kConfigs = EYRIE_SOURCE_DIR "/configs/";
const std::string kLaptop = kConfigs + "hardware/laptop.textproto";

ProcessResult RunPlan(const std::string& config, const std::vector<std::string>& options,
                      const std::vector<std::string>& settings = {}) {
  std::vector<std::string> arguments = {"plan", "--config", config};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return RunEyrie(0, WithSettings(arguments, settings));
}

TEST(PlanCommand, PlansFourThousandRanksInASecond) {
  const ProcessResult text = RunPlan(kConfigs + "griffin/14b.textproto", {"--ranks", "4096"},
                                     {"parallel.tensor=8", "parallel.sequence=4"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_EQ(text.err, "");
  EXPECT_LT(text.cpu_seconds, 1.0);
  EXPECT_GT(text.cpu_seconds, 0.0);
  for (const char* part : {"13,927,781,376 parameters",
                           "4,096 ranks: data 128 x sequence 4 x tensor 8",
                           "H100",
                           "parameters",
                           "gradients",
                           "masters",
                           "moments",
                           "activations",
                           "buffers",
                           "total",
                           "NOTHING would take",
                           "SELECTIVE",
                           "tensor",
                           "sequence",
                           "data, sequence",
                           "gemm",
                           "rg_lru",
                           "other kernels",
                           "communication",
                           "tokens/s",
                           "% of the peak"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << " in:\n" << text.out;
  }
  const ProcessResult json =
      RunPlan(kConfigs + "griffin/14b.textproto", {"--ranks", "4096", "--json"},
              {"parallel.tensor=8", "parallel.sequence=4"});
  const auto plan = nlohmann::json::parse(json.out);
  EXPECT_EQ(plan["parameters"], 13927781376);
  EXPECT_EQ(plan["layout"]["data"], 128);
  EXPECT_GT(plan["step_seconds"]["total"], 0.0);
  EXPECT_GT(plan["sent"]["tensor"]["bytes"], 1e9);
  int64_t total = 0;
  for (const auto& [kind, bytes] : plan["memory"].items()) {
    // A GPU's; the copy for checkpoints is the host's.
    if (kind != "total" && kind != "copy") total += bytes.get<int64_t>();
  }
  EXPECT_EQ(plan["memory"]["total"], total);
  EXPECT_GT(plan["memory"]["copy"], 0);
}

TEST(PlanCommand, RefusesInOneLineThatNamesTheField) {
  const std::string tiny = kConfigs + "griffin/tiny.textproto";
  const auto refused = [](const std::string& config, const std::vector<std::string>& options,
                          const std::vector<std::string>& settings, const std::string& culprit) {
    const ProcessResult result = RunPlan(config, options, settings);
    EXPECT_EQ(result.code, 2) << culprit << result.out;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_NE(result.err.find(culprit), std::string::npos) << culprit << " in: " << result.err;
    EXPECT_EQ(result.out, "");
  };
  refused(tiny, {}, {}, "parallel.data");
  refused(tiny, {"--ranks", "0"}, {}, "--ranks");
  refused(tiny, {"--ranks", "4", "--hardware", "none.textproto"}, {}, "none.textproto");
  refused(tiny, {"--ranks", "4", "--hardware", tiny}, {}, tiny);
  refused(kConfigs + "none.textproto", {"--ranks", "4"}, {}, "none.textproto");
  refused(tiny, {"--ranks", "3"}, {"parallel.tensor=3"}, "model.attention.heads");
  refused(tiny, {"--ranks", "4"}, {"parallel.tensor=3"},
          "parallel: sequence 1 x tensor 3 does not divide the job's 4 ranks");
  refused(tiny, {"--ranks", "4"}, {"parallel.data=2"}, "parallel: ");
  refused(tiny, {"--ranks", "3"}, {}, "train.global_batch_size");
  refused(tiny, {}, {"parallel.data=100000", "parallel.tensor=100000"}, "parallel: ");
  refused(tiny, {"--ranks", "3"}, {"parallel.sequence=3"}, "train.sequence_length");
  refused(tiny, {"--ranks", "4"}, {"model.wdith=1"}, "wdith");
  refused(tiny, {"--ranks", "4"}, {"run.device=cpu"}, "run.device");
  refused(tiny, {"--ranks", "4", "--hardware", kLaptop}, {"run.device=cuda"}, "run.device");
  refused(tiny, {"--ranks", "1"}, {"train.micro_batch_size=65536", "train.global_batch_size=65536"},
          "train.micro_batch_size = 65536; GPUs take at most 65535");
  // Heads that GPUs do not take; the CPU does.
  const std::string xlstm = kConfigs + "xlstm/tiny.textproto";
  const std::string large = kConfigs + "xlstm/large-tiny.textproto";
  const std::string transnormer = kConfigs + "transnormer/tiny.textproto";
  const char* heads = "model.lightning_attention.head_width";
  for (const auto& [config, field, width] : {std::tuple{xlstm, "model.mlstm.width", "5376"},
                                             {large, "model.mlstm.width", "5376"},
                                             {large, "model.mlstm.key_width", "5376"},
                                             {large, "model.mlstm.key_width", "40"},
                                             {transnormer, heads, "132"},
                                             {tiny, "model.attention.head_width", "260"},
                                             {tiny, "model.width", "16640"}}) {
    const std::vector<std::string> settings = {std::string(field) + "=" + width};
    refused(config, {"--ranks", "1"}, settings, field);
    EXPECT_EQ(RunPlan(config, {"--ranks", "1", "--hardware", kLaptop}, settings).code, 0) << field;
  }
}

// What memory cannot hold is refused, by the plan after it has said where the memory goes, and by
// training before it takes any.
TEST(PlanCommand, RefusesWhatMemoryCannotHold) {
  const auto line = [](const ProcessResult& result, const std::string& field) {
    EXPECT_EQ(result.code, 2) << result.out << result.err;
    const std::string found = OnlyLine(result);
    EXPECT_NE(found.find(field), std::string::npos) << found;
    EXPECT_NE(found.find(" would take "), std::string::npos) << found;
  };
  const std::string large = kConfigs + "griffin/14b.textproto";
  const ProcessResult whole = RunPlan(large, {"--ranks", "1"}, {"train.recompute=BLOCKS"});
  line(whole, "eyrie: parallel: rank 0");
  EXPECT_NE(whole.out.find("DOES NOT FIT"), std::string::npos) << whole.out;
  EXPECT_EQ(RunPlan(large, {"--ranks", "8"}, {"parallel.tensor=8"}).code, 0);
  const std::string long_sequence = "train.sequence_length=1048576";
  const ProcessResult batch =
      RunPlan(kConfigs + "griffin/1.3b.textproto", {"--ranks", "1", "--json"}, {long_sequence});
  line(batch, "eyrie: train.micro_batch_size: rank 0");
  EXPECT_GT(nlohmann::json::parse(batch.out)["memory"]["total"], int64_t{85} << 30);

  // All but the copy that checkpoints are written from.
  const TestDirectory directory;
  const std::string tiny = kConfigs + "griffin/tiny.textproto";
  const auto memory = nlohmann::json::parse(
      RunPlan(tiny, {"--ranks", "1", "--json", "--hardware", kLaptop}).out)["memory"];
  const double between = memory["total"].get<double>() - 0.5 * memory["copy"].get<double>();
  std::string hardware = ReadFile(kLaptop);
  hardware.replace(hardware.find("memory_bytes: 8e9"), 17, StrCat("memory_bytes: ", between));
  const std::string small = WriteText(directory / "small.textproto", hardware);
  line(RunPlan(tiny, {"--ranks", "1", "--hardware", small}), "checkpoint.asynchronous: rank 0");
  EXPECT_EQ(
      RunPlan(tiny, {"--ranks", "1", "--hardware", small}, {"checkpoint.asynchronous=false"}).code,
      0);

  WriteTokenFile((directory / "data").string(), 20, 64, 1);
  const std::string config = WriteText(directory / "config.textproto",
                                       SmallTrainingConfig(directory / "data", directory / "run"));
  for (const auto& [setting, field] : std::map<std::string, std::string>{
           {"train.sequence_length=67108864", "train.micro_batch_size"},
           {"model.mlp.width=16777216", "parallel"}}) {
    for (const int ranks : {1, 4}) {
      for (const std::string option : {"--dry-run", "--set=run.threads=1"}) {
        const ProcessResult refused =
            RunEyrie(ranks, WithSettings({"train", "--config", config, option},
                                         {setting, "model.depth=256", "run.device=cpu"}));
        line(refused, "eyrie: " + field + ": rank 0");
        EXPECT_LT(refused.seconds, 20.0);
      }
    }
  }
}

// A rank's own account, the last line of its log that begins with "memory: ".
std::map<std::string, int64_t> MemoryInLog(const fs::path& log) {
  std::map<std::string, int64_t> memory;
  const std::string text = ReadFile(log);
  const size_t start = text.rfind("memory: ");
  if (start == std::string::npos) return memory;
  std::istringstream in(text.substr(start + 8, text.find('\n', start) - start - 8));
  std::string kind;
  for (int64_t bytes; in >> kind >> bytes; in.ignore(1)) memory[kind] = bytes, kind.clear();
  return memory;
}

class PlanAgainstRuns : public testing::Test {
 protected:
  PlanAgainstRuns() { WriteTokenFile((directory_ / "data").string(), 200, 2048, 1); }

  // The memory of every kind, of the rank that took most, is within 5 % of the plan's.
  void ExpectPlanned(const std::string& name, int ranks, std::vector<std::string> settings) {
    const fs::path run = directory_ / ("run" + std::to_string(++runs_));
    const std::string data = (directory_ / "data").string();
    settings.insert(settings.end(),
                    {"data.train=" + data, "data.validation=" + data,
                     "data.tokenizer=", "train.validation_interval=1",
                     "train.validation_sequences=4", "train.steps=10", "train.stop_after=2",
                     "optimizer.warmup_steps=0", "run.threads=1", "run.directory=" + run.string()});
    const std::string config = kConfigs + name + ".textproto";
    const ProcessResult trained =
        RunEyrie(ranks, WithSettings({"train", "--config", config}, settings));
    ASSERT_EQ(trained.code, 0) << trained.err;
    std::map<std::string, int64_t> largest;
    int64_t most = 0, copy = 0;
    int logs = 0;
    for (const auto& entry : fs::directory_iterator(run / "logs")) {
      auto memory = MemoryInLog(entry.path());
      // Ranks do not save equally much; the largest copy need not be of the largest rank.
      ASSERT_EQ(memory.count("copy"), 1u);
      copy = std::max(copy, memory["copy"]);
      memory.erase("copy");
      int64_t total = 0;
      for (const auto& [kind, bytes] : memory) total += bytes;
      if (total > most) most = total, largest = memory;
      ++logs;
    }
    ASSERT_EQ(logs, ranks);
    ASSERT_EQ(largest.size(), 6u);

    const ProcessResult planned = RunPlan(
        config, {"--json", "--hardware", kLaptop, "--ranks", std::to_string(ranks)}, settings);
    ASSERT_EQ(planned.code, 0) << planned.err;
    const auto plan = nlohmann::json::parse(planned.out);
    const auto expect_near = [&](const std::string& kind, int64_t actual) {
      const double predicted = plan["memory"][kind];
      EXPECT_NEAR(predicted, static_cast<double>(actual), 0.05 * static_cast<double>(actual))
          << kind;
    };
    for (const auto& [kind, bytes] : largest) expect_near(kind, bytes);
    expect_near("copy", copy);
    expect_near("total", most + copy);

    std::vector<double> seconds;
    for (const auto& line : ReadMetrics(run)) seconds.push_back(line["step_seconds"]);
    std::string layout;
    for (const std::string& setting : settings) {
      if (setting.starts_with("data.")) break;
      layout += " " + setting;
    }
    std::printf("%-18s %d ranks%s: planned %.3f MB, taken %.3f MB; %.4f s, %.4f s\n", name.c_str(),
                ranks, layout.c_str(), plan["memory"]["total"].get<double>() / 1e6,
                static_cast<double>(most + copy) / 1e6, plan["step_seconds"]["total"].get<double>(),
                *std::min_element(seconds.begin(), seconds.end()));
    std::fflush(stdout);  // a later fork would print it again
  }

  TestDirectory directory_;
  int runs_ = 0;
};

TEST_F(PlanAgainstRuns, EveryFamily) {
  for (const std::string name : {"griffin/tiny", "hawk/tiny", "transformer/tiny"}) {
    ExpectPlanned(name, 1, {});
    ExpectPlanned(name, 1, {"train.recompute=BLOCKS"});
    ExpectPlanned(name, 1, {"train.recompute=SELECTIVE"});
    ExpectPlanned(name, 4, {"parallel.tensor=2", "parallel.sequence=2", "train.recompute=BLOCKS"});
  }
}

TEST_F(PlanAgainstRuns, EveryAxis) {
  ExpectPlanned("griffin/tiny", 2, {"parallel.tensor=2"});
  ExpectPlanned("griffin/tiny", 2, {"parallel.data=2"});
  ExpectPlanned("griffin/tiny", 2, {"parallel.data=2", "parallel.zero=OPTIMIZER_STATE"});
  ExpectPlanned("griffin/tiny", 2, {"parallel.sequence=2"});
  ExpectPlanned("griffin/tiny", 4, {"parallel.sequence=4", "train.recompute=BLOCKS"});
  ExpectPlanned("griffin/tiny", 1, {"train.chunk_length=16"});
  ExpectPlanned("hawk/tiny", 2, {"parallel.tensor=2", "train.chunk_length=16"});
}

TEST_F(PlanAgainstRuns, LargerModel) {
  ExpectPlanned("quickstart", 1, {});
  ExpectPlanned("quickstart", 2, {"parallel.tensor=2", "train.recompute=BLOCKS"});
  ExpectPlanned("quickstart", 2, {"parallel.data=2", "parallel.zero=OPTIMIZER_STATE"});
}

}  // namespace
}  // namespace eyrie
