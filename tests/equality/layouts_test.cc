// Every layout trains as one rank does, under a real mpirun: losses, gradient norms, checkpoints.
#include "tests/equality/layouts.h"

#include <gtest/gtest.h>

#include <map>

namespace eyrie {
namespace {

namespace fs = std::filesystem;

TEST_F(LayoutsTest, TwentyStepsEqualOneRank) {
  const auto one = Train("one", kOne);
  ASSERT_EQ(one.size(), 20u);
  // It learns: otherwise equality says little.
  EXPECT_LT(one.back()["loss"].get<double>(), 0.9 * one.front()["loss"].get<double>());
  for (const Layout& layout :
       {Layout{"t2", 2, 1, 2}, Layout{"d2", 1, 2, 2}, kT4, kT2D2, Layout{"s2", 1, 1, 2, 2},
        Layout{"s4", 1, 1, 4, 4}, Layout{"t2s2", 2, 1, 4, 2}, Layout{"d2s2", 1, 2, 4, 2},
        Layout{"t2d2s2", 2, 2, 8, 2}}) {
    ExpectSame(Train(layout.name, layout), one, 1e-5, layout.name);
  }
  // Another microbatch size cuts the same global batch differently.
  ExpectSame(Train("micro", kOne, {"train.micro_batch_size=8"}), one, 1e-5, "micro");
  ExpectSame(Train("micro1", kT2D2, {"train.micro_batch_size=1"}), one, 1e-5, "micro1");
  ExpectSame(Train("recompute", kT2D2, {"train.recompute=BLOCKS"}), one, 1e-5, "recompute");
  ExpectSame(Train("selective", kOne, {"train.recompute=SELECTIVE"}), one, 0.0, "selective");
  ExpectSame(Train("selective-t2s2", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.recompute=SELECTIVE", "train.chunk_length=8", "train.batch_slices=2"}),
             one, 1e-5, "selective t2s2");
  ExpectSame(Train("chunks", kT2D2, {"train.chunk_length=5"}), one, 1e-5, "chunks");
  ExpectSame(Train("chunks-s2", Layout{"s2", 1, 1, 2, 2}, {"train.chunk_length=4"}), one, 1e-5,
             "chunks s2");
  ExpectSame(Train("chunks-t2s2", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.chunk_length=8", "train.recompute=BLOCKS"}),
             one, 1e-5, "chunks t2s2");
  for (const Layout& layout : {kOne, Layout{"t2", 2, 1, 2}, Layout{"d2", 1, 2, 2},
                               Layout{"s2", 1, 1, 2, 2}, Layout{"t2s2", 2, 1, 4, 2}}) {
    ExpectSame(Train(std::string("slices-") + layout.name, layout, {"train.batch_slices=2"}), one,
               1e-5, std::string("slices ") + layout.name);
  }
  ExpectSame(Train("slices-chunks-t2s2", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.batch_slices=2", "train.chunk_length=4", "train.recompute=BLOCKS",
                    "parallel.zero=OPTIMIZER_STATE", "parallel.bucket_bytes=2048"}),
             one, 1e-5, "slices chunks t2s2");
  ExpectSame(Train("recompute-s4", Layout{"s4", 1, 1, 4, 4}, {"train.recompute=BLOCKS"}), one, 1e-5,
             "recompute s4");
}

TEST_F(LayoutsTest, MambaEqualsOneRankToo) {
  const auto train = [&](const std::string& name, const Layout& layout,
                         std::vector<std::string> settings = {}) {
    settings.push_back("model.pattern=mamba");
    return Train(name, layout, settings);
  };
  const auto one = train("one", kOne);
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back()["loss"].get<double>(), 0.9 * one.front()["loss"].get<double>());
  ExpectSame(train("t4", kT4), one, 1e-5, "t4");
  ExpectSame(train("s4", Layout{"s4", 1, 1, 4, 4}), one, 1e-5, "s4");
  ExpectSame(train("selective", Layout{"t2s2", 2, 1, 4, 2}, {"train.recompute=SELECTIVE"}), one,
             1e-5, "selective");
  ExpectSame(train("chunks", kT2D2, {"train.chunk_length=5"}), one, 1e-5, "chunks");
  ExpectSame(train("all", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.batch_slices=2", "train.chunk_length=4", "train.recompute=BLOCKS",
                    "parallel.zero=OPTIMIZER_STATE"}),
             one, 1e-5, "all");
}

TEST_F(LayoutsTest, TimeInvariantMambaEqualsOneRank) {
  const auto train = [&](const std::string& name, const Layout& layout,
                         std::vector<std::string> settings = {}) {
    settings.insert(settings.end(), {"model.pattern=mamba", "model.mamba.input_dependent=false"});
    return Train(name, layout, settings);
  };
  const auto one = train("one", kOne);
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back()["loss"].get<double>(), 0.9 * one.front()["loss"].get<double>());
  ExpectSame(train("t4", kT4), one, 1e-5, "t4");
  ExpectSame(train("all", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.batch_slices=2", "train.chunk_length=4", "train.recompute=BLOCKS",
                    "parallel.zero=OPTIMIZER_STATE"}),
             one, 1e-5, "all");
}

// The labels of a file are those of the tokens after each, or a third of them, so that ranks and
// microbatches count unlike numbers of them.
TEST_F(LayoutsTest, GivenLabelsTrainAsOneRankDoes) {
  const std::string data = (directory_ / "data").string();
  const auto train = [&](const std::string& name, const Layout& layout,
                         std::vector<std::string> settings = {}) {
    settings.push_back("data.labels=GIVEN");
    return Train(name, layout, settings);
  };
  WriteLabelFile(data, 64, 1);
  ASSERT_NE(IndexedDataset(data).total_tokens() % 32, 0);  // the same sequences
  ExpectSame(train("all", kT2D2), Train("next", kT2D2), 0.0, "all");

  WriteLabelFile(data, 64, 3);
  const auto one = train("one", kOne);
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back()["loss"].get<double>(), 0.9 * one.front()["loss"].get<double>());
  ExpectSame(train("micro", kOne, {"train.micro_batch_size=8"}), one, 1e-5, "micro");
  for (const Layout& layout : {kT4, kT2D2, Layout{"s4", 1, 1, 4, 4}, Layout{"d2s2", 1, 2, 4, 2}}) {
    ExpectSame(train(layout.name, layout), one, 1e-5, layout.name);
  }
  ExpectSame(train("chunks", kOne, {"train.chunk_length=5"}), one, 1e-5, "chunks");
  ExpectSame(train("slices-chunks-t2s2", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.batch_slices=2", "train.chunk_length=4", "train.recompute=BLOCKS",
                    "parallel.zero=OPTIMIZER_STATE"}),
             one, 1e-5, "slices chunks t2s2");

  const auto eval = [&](int ranks, const std::vector<std::string>& settings) {
    const ProcessResult result = RunEyrie(
        ranks, WithSettings({"eval", "--checkpoint", (directory_ / "one").string(), "--data", data},
                            settings));
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };
  const auto alone = eval(0, {});
  EXPECT_EQ(alone["tokens"], (alone["sequences"].get<int64_t>() * 32 + 2) / 3);
  EXPECT_GT(alone["accuracy"], 0.1);
  for (const auto& [ranks, settings] : std::vector<std::pair<int, std::vector<std::string>>>{
           {3, {}},
           {2, {"parallel.tensor=2"}},
           {4, {"parallel.tensor=2", "parallel.sequence=2", "train.chunk_length=8"}},
           {0, {"train.chunk_length=7"}}}) {
    const auto other = eval(ranks, settings);
    EXPECT_NEAR(other["loss"], alone["loss"], 1e-5 * alone["loss"].get<double>());
    for (const char* key : {"accuracy", "exact_sequences", "tokens", "sequences"}) {
      EXPECT_EQ(other[key], alone[key]) << key << " on " << ranks;
    }
  }
}

// Its norm spans the heads of all tensor ranks.
TEST_F(LayoutsTest, TransNormerEqualsOneRank) {
  const auto train = [&](const std::string& name, const Layout& layout,
                         std::vector<std::string> settings) {
    settings.insert(settings.end(),
                    {"model.pattern=lightning_attention+sglu", "model.norm=SIMPLE_RMS_NORM"});
    return Train(name, layout, settings);
  };
  const auto one = train("one", kOne, {});
  ASSERT_EQ(one.size(), 20u);
  EXPECT_LT(one.back()["loss"].get<double>(), 0.9 * one.front()["loss"].get<double>());
  for (const Layout& layout : {kT4, kT2D2, Layout{"s4", 1, 1, 4, 4}, Layout{"t2s2", 2, 1, 4, 2}}) {
    ExpectSame(train(layout.name, layout, {}), one, 1e-5, layout.name);
  }
  ExpectSame(train("slices-chunks-t2s2", Layout{"t2s2", 2, 1, 4, 2},
                   {"train.batch_slices=2", "train.chunk_length=4", "train.recompute=BLOCKS",
                    "parallel.zero=OPTIMIZER_STATE", "parallel.bucket_bytes=2048"}),
             one, 1e-5, "slices chunks t2s2");
}

// xLSTM's blocks, alone and mixed: [1:0], [0:1], a short [7:1], and the block of xLSTM 7B.
TEST_F(LayoutsTest, XlstmEqualsOneRank) {
  const std::vector<std::string> patterns = {"mlstm", "slstm+geglu_erf", "mlstm,slstm+geglu_erf",
                                             "mlstm_large+swiglu"};
  for (const std::string& pattern : patterns) {
    SCOPED_TRACE(pattern);
    const auto train = [&](const std::string& name, const Layout& layout,
                           std::vector<std::string> settings = {}) {
      settings.insert(settings.end(),
                      {"model.pattern=" + pattern, "model.norm=LAYER_NORM",
                       "model.tied_embedding=false", "model.embedding_variance=0.4"});
      return Train(pattern + name, layout, settings);
    };
    const auto one = train("one", kOne);
    ASSERT_EQ(one.size(), 20u);
    EXPECT_LT(one.back()["loss"].get<double>(), 0.95 * one.front()["loss"].get<double>());
    for (const Layout& layout :
         {kT4, kT2D2, Layout{"s4", 1, 1, 4, 4}, Layout{"t2s2", 2, 1, 4, 2}}) {
      ExpectSame(train(layout.name, layout), one, 1e-5, pattern + " " + layout.name);
    }
    ExpectSame(train("selective", kOne, {"train.recompute=SELECTIVE"}), one, 0.0,
               pattern + " selective");
    ExpectSame(train("chunks", kT2D2, {"train.chunk_length=5"}), one, 1e-5, pattern + " chunks");
    ExpectSame(train("all", Layout{"t2s2", 2, 1, 4, 2},
                     {"train.batch_slices=2", "train.chunk_length=4", "train.recompute=BLOCKS",
                      "parallel.zero=OPTIMIZER_STATE", "parallel.bucket_bytes=2048"}),
               one, 1e-5, pattern + " all");
  }
}

TEST_F(LayoutsTest, XlstmReshards) {
  const std::vector<std::string> xlstm = {"model.pattern=mlstm,slstm+geglu_erf",
                                          "model.norm=LAYER_NORM", "model.tied_embedding=false"};
  const auto with = [&](const std::string& more) {
    std::vector<std::string> settings = xlstm;
    settings.push_back(more);
    return settings;
  };
  const Layout all{"t2s2", 2, 1, 4, 2};
  const auto whole = Train("whole", all, xlstm);
  Train("first", all, with("train.stop_after=10"));
  const fs::path saved = directory_ / "first" / "checkpoints" / "step-00000010";
  const std::vector<nlohmann::json> tail(whole.begin() + 10, whole.end());
  for (const Layout& layout : {Layout{"s4", 1, 1, 4, 4}, kT4, kOne}) {
    ExpectSame(Train(std::string("continued-") + layout.name, layout,
                     with("checkpoint.resume=" + saved.string())),
               tail, 1e-5, layout.name);
  }
}

TEST_F(LayoutsTest, TheSameLayoutTwiceIsBitwiseEqual) {
  for (const Layout& layout : {kOne, kT2D2}) ExpectBitwise("a", "b", layout);
  ExpectBitwise("sliced-a", "sliced-b", Layout{"t2s2", 2, 1, 4, 2}, {"train.batch_slices=2"});
}

TEST_F(LayoutsTest, ResumedOnAnotherLayoutContinuesTheSameRun) {
  const auto whole = Train("whole", kT2D2);
  Train("first", kT2D2, {"train.stop_after=10"});
  const fs::path saved = directory_ / "first" / "checkpoints" / "step-00000010";
  ASSERT_TRUE(fs::exists(saved / "manifest.textproto"));

  // Through reshard, then continued in a directory of its own.
  const std::vector<nlohmann::json> tail(whole.begin() + 10, whole.end());
  for (const Layout& layout : {kT4, kOne}) {
    const fs::path resharded = directory_ / (std::string("resharded-") + layout.name);
    const ProcessResult result =
        RunEyrie(0, {"checkpoint", "reshard", saved.string(), "--output", resharded.string(),
                     "--set", "parallel.tensor=" + std::to_string(layout.tensor), "--set",
                     "parallel.data=" + std::to_string(layout.data)});
    ASSERT_EQ(result.code, 0) << result.err;
    ExpectSame(Train(std::string("continued-") + layout.name, layout,
                     {"checkpoint.resume=" + resharded.string()}),
               tail, 1e-5, layout.name);
  }
  // Directly, in the same directory: the metrics join up.
  ExpectSame(
      Train("continued-s4", Layout{"s4", 1, 1, 4, 4}, {"checkpoint.resume=" + saved.string()}),
      tail, 1e-5, "s4");
  ExpectSame(Train("first", Layout{"d2", 1, 2, 2}), whole, 1e-5, "in place");
}

TEST_F(LayoutsTest, SequenceLayoutsReshardToo) {
  const Layout all{"t2d2s2", 2, 2, 8, 2};
  const auto whole = Train("whole", all);
  Train("first", all, {"train.stop_after=10"});
  const fs::path saved = directory_ / "first" / "checkpoints" / "step-00000010";
  const std::vector<nlohmann::json> tail(whole.begin() + 10, whole.end());
  for (const Layout& layout : {Layout{"s4", 1, 1, 4, 4}, Layout{"d4", 1, 4, 4}, kOne}) {
    const fs::path resharded = directory_ / (std::string("resharded-") + layout.name);
    const ProcessResult result =
        RunEyrie(0, {"checkpoint", "reshard", saved.string(), "--output", resharded.string(),
                     "--set", "parallel.tensor=" + std::to_string(layout.tensor), "--set",
                     "parallel.sequence=" + std::to_string(layout.sequence), "--set",
                     "parallel.data=" + std::to_string(layout.data)});
    ASSERT_EQ(result.code, 0) << result.err;
    ExpectSame(Train(std::string("continued-") + layout.name, layout,
                     {"checkpoint.resume=" + resharded.string(), "train.micro_batch_size=1"}),
               tail, 1e-5, layout.name);
  }
}

TEST_F(LayoutsTest, ALongSequenceOnFourRanksEqualsOne) {
  WriteTokenFile((directory_ / "data").string(), 2000, 64, 5);
  const std::vector<std::string> settings = {
      "train.sequence_length=65536", "train.global_batch_size=1",
      "train.micro_batch_size=1",    "train.steps=2",
      "train.validation_interval=0", "data.packing=CONTINUOUS",
      "train.recompute=BLOCKS"};
  const auto one = Train("one", kOne, settings);
  ExpectSame(Train("s4", Layout{"s4", 1, 1, 4, 4}, settings), one, 1e-5, "s4");
  std::vector<std::string> chunked = settings;
  chunked.push_back("train.chunk_length=5000");
  ExpectSame(Train("chunked", kOne, chunked), one, 1e-5, "chunked");
}

TEST_F(LayoutsTest, ResumedOnTheSameLayoutIsBitwiseTheSameRun) {
  const auto whole = Train("whole", kT2D2);
  Train("parts", kT2D2, {"train.stop_after=7"});
  Train("parts", kT2D2, {"train.stop_after=6"});
  ExpectSame(Train("parts", kT2D2), whole, 0.0, "parts");
}

// Decoding through the state, in any layout, gives the logits of the training forward pass.
TEST_F(LayoutsTest, LogitsAndEvalAgreeAcrossLayouts) {
  Train("run", kT2D2);
  const std::string run = (directory_ / "run").string();
  std::string tokens;
  for (int i = 0; i < 70; ++i) tokens += std::to_string((i * 37 + i * i) % 64) + " ";
  std::map<std::string, std::string> files;
  for (const auto& [name, ranks, prefill] :
       {std::tuple{"all", 0, "70"}, {"steps", 0, "0"}, {"some", 1, "33"}, {"t4", 4, "33"}}) {
    files[name] = (directory_ / (std::string(name) + ".safetensors")).string();
    const ProcessResult result = RunEyrie(ranks, {"logits", "--checkpoint", run, "--tokens", tokens,
                                                  "--output", files[name], "--prefill", prefill});
    ASSERT_EQ(result.code, 0) << result.err;
  }
  const std::string all = ReadFile(files["all"]);
  const auto values = [](const std::string& bytes) {
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    std::vector<float> result(70 * 64);
    EXPECT_EQ(bytes.size(), 8 + header + result.size() * sizeof(float));
    std::memcpy(result.data(), bytes.data() + 8 + header, result.size() * sizeof(float));
    return result;
  };
  const std::vector<float> expected = values(all);
  for (const auto& [name, file] : files) {
    const std::vector<float> actual = values(ReadFile(file));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 1e-4) << name << " element " << i;
    }
  }

  const auto eval = [&](int ranks, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"eval", "--checkpoint", run, "--data",
                                          (directory_ / "data").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProcessResult result = RunEyrie(ranks, arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out)["loss"].get<double>();
  };
  const double loss = eval(0, {});
  EXPECT_NEAR(eval(3, {}), loss, 1e-5 * loss);
  EXPECT_NEAR(eval(2, {"--set", "parallel.tensor=2"}), loss, 1e-5 * loss);
  // The first sequences of the file are the run's own validation set.
  const double validation = ReadMetrics(directory_ / "run").back()["validation_loss"];
  EXPECT_NEAR(eval(0, {"--sequences", "10"}), validation, 1e-5 * validation);
}

}  // namespace
}  // namespace eyrie
