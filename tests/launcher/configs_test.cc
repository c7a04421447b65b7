// Every configuration file of a model is one that `eyrie train` accepts.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/config.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// "griffin/1.3b" of every file, in no order.
std::vector<std::string> Names() {
  const fs::path root = EYRIE_SOURCE_DIR "/configs";
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".textproto") continue;
    if (entry.path().parent_path().filename() == "hardware") continue;  // not a model
    names.push_back(entry.path().lexically_relative(root).replace_extension("").string());
  }
  return names;
}

// As a job of `ranks` ranks would read it; "" or what stops the job.
std::string Load(const std::string& name, int ranks, const std::vector<std::string>& settings,
                 config::Config& config) {
  try {
    config = LoadConfig(EYRIE_SOURCE_DIR "/configs/" + name + ".textproto");
    ApplySettings(settings, config);
    Resolve(config, ranks);
    ValidateForTraining(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ConfigFiles, CanTrain) {
  for (const std::string& name : Names()) {
    SCOPED_TRACE(name);
    config::Config config;
    ASSERT_EQ(Load(name, 1, {}, config), "");
    EXPECT_LT(config.optimizer().warmup_steps(), config.train().steps());
    // The synthetic tasks' tokens are no text, and their labels are given.
    const bool is_task = name.starts_with("tasks/");
    EXPECT_EQ(config.data().tokenizer().empty(), is_task);
    EXPECT_TRUE(is_task || config.data().tokenizer().starts_with("sentencepiece:data/"));
    EXPECT_EQ(config.data().labels(),
              is_task ? config::DataConfig::GIVEN : config::DataConfig::NEXT_TOKEN);
    EXPECT_EQ(config.optimizer().gradient_clip(), 1.0);
    // Runs do not share a directory: runs/griffin-1.3b, runs/recurrentgemma-2b.
    std::string directory = name;
    if (const size_t slash = name.find('/'); slash != std::string::npos) {
      const std::string size = name.substr(slash + 1);
      directory = size.starts_with("recurrentgemma") ? size : name.substr(0, slash) + "-" + size;
    }
    EXPECT_EQ(config.run().directory(), "runs/" + directory);
  }
}

// Checkpoints written before a field was there lack it.
TEST(ConfigFiles, AModelWithoutAFieldHasItsDefault) {
  config::Config complete;
  ASSERT_EQ(Load("mamba/tiny", 1, {}, complete), "");
  config::ModelConfig older = complete.model();
  older.mutable_mamba()->clear_input_dependent();
  EXPECT_NO_THROW(RequireSameModel(older, complete.model(), "run"));
  complete.mutable_model()->mutable_mamba()->set_input_dependent(false);
  EXPECT_THROW(RequireSameModel(older, complete.model(), "run"), Error);
}

// As an imported one has it written out, which the configuration leaves to the mixer.
TEST(ConfigFiles, AnAutomaticNumberIsItsValue) {
  config::Config automatic;
  ASSERT_EQ(Load("mamba/tiny", 1, {}, automatic), "");
  ASSERT_EQ(automatic.model().mamba().dt_rank(), 0);
  config::ModelConfig written = automatic.model();
  written.mutable_mamba()->set_dt_rank((written.width() + 15) / 16);
  EXPECT_NO_THROW(RequireSameModel(written, automatic.model(), "run"));
  EXPECT_NO_THROW(RequireSameModel(automatic.model(), written, "run"));
  written.mutable_mamba()->set_dt_rank(1);
  EXPECT_THROW(RequireSameModel(written, automatic.model(), "run"), Error);
}

// The models of tests and of the quickstart fit every layout of four ranks.
TEST(ConfigFiles, SmallOnesFitFourRanks) {
  for (const std::string& name : Names()) {
    if (!name.ends_with("tiny") && name != "quickstart") continue;
    for (const int tensor : {1, 2, 4}) {
      config::Config config;
      EXPECT_EQ(Load(name, 4, {"parallel.tensor=" + std::to_string(tensor)}, config), "")
          << name << " on " << tensor;
      EXPECT_EQ(config.parallel().data(), 4 / tensor);
      EXPECT_EQ(config.train().sequence_length() % 4, 0);
      EXPECT_EQ(config.train().global_batch_size() % 4, 0);
      EXPECT_EQ(config.model().width() % 4, 0);
    }
  }
}

}  // namespace
}  // namespace eyrie
