// eyrie checkpoint import and export as a user meets them: the logits that transformers gives,
// training from an imported model, and exit codes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/memory.h"
#include "core/safetensors.h"
#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class HuggingFaceCommandTest : public testing::Test {
 protected:
  static fs::path Golden(const std::string& name, const std::string& family = "recurrent_gemma") {
    return fs::path(EYRIE_SOURCE_DIR) / "tests/golden" / family / name;
  }
  std::string Path(const std::string& name) const { return (directory_ / name).string(); }
  ProcessResult Import(const std::string& folder, const std::string& output) const {
    return RunEyrie(0, {"checkpoint", "import", folder, "--output", output});
  }

  TestDirectory directory_;
};

TEST_F(HuggingFaceCommandTest, LogitsEqualThoseOfTransformers) {
  for (const auto& [family, model] :
       {std::pair<std::string, std::string>{"recurrent_gemma", "small"},
        {"recurrent_gemma", "wide"},
        {"mamba", "small"},
        {"mamba", "wide"},
        {"xlstm", "small"},
        {"xlstm", "wide"}}) {
    const std::string name = family + "-" + model;
    ASSERT_EQ(Import(Golden(model, family), Path(name)).code, 0);
    const SafetensorsFile golden(Golden(model + ".expected.safetensors", family));
    const auto& shape = golden.Find("logits")->shape;
    OwnedTensor tokens(DType::kI32, {shape[0]}), expected(DType::kF32, {shape[0], shape[1]});
    golden.Read("tokens", tokens.tensor);
    golden.Read("logits", expected.tensor);
    std::string words;
    for (int64_t t = 0; t < shape[0]; ++t) {
      words += std::to_string(tokens.tensor.data<int32_t>()[t]) + " ";
    }
    // In one go; token by token; and on two tensor ranks.
    const std::vector<std::pair<int, std::string>> ways = {{0, "100"}, {0, "0"}, {2, "100"}};
    for (const auto& [ranks, prefill] : ways) {
      const std::string output = Path(name + ".safetensors");
      const ProcessResult result =
          RunEyrie(ranks, {"logits", "--checkpoint", Path(name), "--tokens", words, "--output",
                           output, "--prefill", prefill});
      ASSERT_EQ(result.code, 0) << result.err;
      OwnedTensor logits(DType::kF32, {shape[0], shape[1]});
      SafetensorsFile(output).Read("logits", logits.tensor);
      double difference = 0.0;
      for (int64_t i = 0; i < logits.tensor.size(); ++i) {
        difference = std::max(difference, std::abs(double{logits.tensor.data<float>()[i]} -
                                                   expected.tensor.data<float>()[i]));
      }
      EXPECT_LT(difference, 1e-4) << name << ", " << ranks << " ranks, prefill " << prefill;
    }
  }
}

TEST_F(HuggingFaceCommandTest, TrainingStartsFromAnImportedModel) {
  const ProcessResult imported = Import(Golden("small"), Path("start"));
  ASSERT_EQ(imported.code, 0) << imported.err;
  EXPECT_NE(imported.out.find("recurrent_gemma, 42592 parameters"), std::string::npos);
  WriteTokenFile(Path("data"), 60, 64, 3);
  const std::string config = WriteText(directory_ / "config.textproto", R"(
    model {
      vocab_size: 64 width: 32 depth: 3
      pattern: ["recurrent+geglu", "recurrent+geglu", "local_attention+geglu"]
      embedding_scale: SQRT_WIDTH logit_soft_cap: 30
      recurrent { width: 32 gate_blocks: 2 }
      attention { heads: 2 head_width: 16 window: 32 }
      mlp { width: 96 }
    }
    train { steps: 4 sequence_length: 32 global_batch_size: 4 micro_batch_size: 2 seed: 7 }
    optimizer { learning_rate: 1e-3 }
    data { train: ")" + Path("data") + R"(" }
    checkpoint { resume: ")" + Path("start") + R"(" }
    run { threads: 1 }
  )");
  std::vector<double> losses;  // at the first step, before anything is learnt
  for (const int ranks : {0, 2}) {
    const std::string run = Path("run-" + std::to_string(ranks));
    const ProcessResult result =
        RunEyrie(ranks, {"train", "--config", config, "--set", "run.directory=" + run, "--set",
                         "parallel.tensor=" + std::to_string(std::max(ranks, 1))});
    ASSERT_EQ(result.code, 0) << result.err;
    const auto metrics = ReadMetrics(run);
    ASSERT_EQ(metrics.size(), 4u);
    losses.push_back(metrics[0].at("loss"));
    EXPECT_LT(metrics[3].at("loss"), metrics[0].at("loss"));
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-4);
  // Far worse than a fresh model's log 64: it is the golden one's arbitrary weights that predict.
  EXPECT_GT(losses[0], 4.5);

  // What was trained can be exported.
  const ProcessResult exported =
      RunEyrie(0, {"checkpoint", "export", Path("run-0"), "--output", Path("hf"), "--dtype", "bf16",
                   "--shard-size", "50KB"});
  ASSERT_EQ(exported.code, 0) << exported.err;
  EXPECT_TRUE(fs::exists(Path("hf/model.safetensors.index.json")));
  EXPECT_TRUE(fs::exists(Path("hf/model-00001-of-00002.safetensors")));
  EXPECT_EQ(Import(Path("hf"), Path("again")).code, 0);
}

TEST_F(HuggingFaceCommandTest, BadInputEndsWithOneLine) {
  ExpectRefused(Import(Path("nowhere"), Path("out")), {Path("nowhere"), "no such directory"});
  fs::copy(Golden("wide"), directory_ / "hf");
  fs::remove(directory_ / "hf" / "model-00003-of-00003.safetensors");
  ExpectRefused(Import(Path("hf"), Path("out")), {"model-00003-of-00003.safetensors"});
  fs::remove_all(directory_ / "hf");
  fs::copy(Golden("small"), directory_ / "hf");
  std::string config = ReadFile(Path("hf/config.json"));
  const std::string field = "\"num_key_value_heads\": 1";
  config.replace(config.find(field), field.size(), "\"num_key_value_heads\": 2");
  WriteText(directory_ / "hf" / "config.json", config);
  ExpectRefused(Import(Path("hf"), Path("out")),
                {Path("hf/config.json"), "num_key_value_heads = 2"});
  EXPECT_FALSE(fs::exists(Path("out")));

  // A Griffin, but no RecurrentGemma.
  WriteTokenFile(Path("data"), 60, 64, 3);
  const std::string train = WriteText(directory_ / "config.textproto",
                                      SmallTrainingConfig(Path("data"), directory_ / "run"));
  ASSERT_EQ(RunEyrie(0, {"train", "--config", train, "--set", "train.stop_after=1"}).code, 0);
  const auto refused_export = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"checkpoint", "export", Path("run"), "--output",
                                          Path("out")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunEyrie(0, arguments);
  };
  ExpectRefused(refused_export({}), {"manifest.textproto", "recurrent_gemma",
                                     "model.embedding_scale is not SQRT_WIDTH"});
  ExpectRefused(refused_export({"--dtype", "f64"}), {"--dtype", "f64"});
  ExpectRefused(refused_export({"--shard-size", "0"}), {"--shard-size"});
  EXPECT_FALSE(fs::exists(Path("out")));
}

}  // namespace
}  // namespace eyrie
