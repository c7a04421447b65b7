// Checkpoints that are damaged, do not fit, or could not be written.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <random>

#include "launcher/config.h"
#include "launcher/reshard.h"
#include "tests/launcher/checkpoint_util.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class CheckpointDamageTest : public CheckpointTest {
 protected:
  void Overwrite(const fs::path& file, const std::string& content) const {
    std::ofstream(file, std::ios::binary | std::ios::trunc) << content;
  }
  // verify finds fault with `file`.
  void ExpectVerifyNames(const fs::path& file) const {
    const std::string message = BadInput([&] { VerifyCheckpoint(file.parent_path()); });
    EXPECT_TRUE(message.starts_with(file.string() + ":")) << message << " blamed " << file;
  }
  fs::path SaveWithTokenizer() const {
    config::Config config = ConfigFor({2, 1, 2});
    config.mutable_data()->set_tokenizer("sentencepiece:" + Write("spm.model", "0123456789"));
    EXPECT_EQ(TrySave({2, 1, 2}, 1, 7, config).codes, (std::vector<int>{0, 0, 0, 0}));
    return checkpoints_ / "step-00000001";
  }
};

TEST_F(CheckpointDamageTest, VerifyFindsEveryFlippedByte) {
  const fs::path checkpoint = SaveWithTokenizer();
  const auto files = Files(checkpoint);
  ASSERT_EQ(files.size(), 6u);
  VerifyCheckpoint(checkpoint);
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const auto& [name, content] = *std::next(files.begin(), static_cast<long>(random() % 6));
    const size_t position = random() % content.size();
    std::string changed = content;
    changed[position] = static_cast<char>(changed[position] ^ (1 << random() % 8));
    SCOPED_TRACE(StrCat(name, " byte ", position));
    Overwrite(checkpoint / name, changed);
    ExpectVerifyNames(checkpoint / name);
    Overwrite(checkpoint / name, content);
  }
  VerifyCheckpoint(checkpoint);
}

TEST_F(CheckpointDamageTest, VerifyFindsFilesThatAreMissingShortOrLong) {
  const fs::path checkpoint = SaveWithTokenizer();
  for (const auto& [name, content] : Files(checkpoint)) {
    SCOPED_TRACE(name);
    for (const std::string& changed :
         {std::string(), content.substr(0, content.size() - 1), content.substr(1), content + "x",
          content + std::string(1, '\0'), content + "\n"}) {
      Overwrite(checkpoint / name, changed);
      ExpectVerifyNames(checkpoint / name);
    }
    fs::remove(checkpoint / name);
    ExpectVerifyNames(checkpoint / name);
    fs::create_directory(checkpoint / name);
    ExpectVerifyNames(checkpoint / name);
    fs::remove(checkpoint / name);
    Overwrite(checkpoint / name, content);
  }
  VerifyCheckpoint(checkpoint);
}

TEST_F(CheckpointDamageTest, VerifyFindsPaddingThatStillParses) {
  const fs::path checkpoint = SaveWithTokenizer();
  int padded = 0;
  for (const auto& [name, content] : Files(checkpoint)) {
    const size_t padding = content.find("}} ");  // of a shard's header
    if (padding == std::string::npos) continue;
    ++padded;
    std::string changed = content;
    changed[padding + 2] = '\t';
    Overwrite(checkpoint / name, changed);
    ExpectVerifyNames(checkpoint / name);
    Overwrite(checkpoint / name, content);
  }
  EXPECT_GT(padded, 0);
}

TEST_F(CheckpointDamageTest, VerifyFindsASwappedShard) {
  const fs::path a = Save({}, 1, 1), b = Save({}, 2, 2);
  fs::copy_file(a / ShardName(0, 1), b / ShardName(0, 1), fs::copy_options::overwrite_existing);
  ExpectVerifyNames(b / ShardName(0, 1));
}

TEST_F(CheckpointDamageTest, LoadingNamesTheFile) {
  const fs::path checkpoint = Save({1, 1, 4}, 1);
  const fs::path shard = checkpoint / ShardName(2, 4);
  const std::string content = Slurp(shard.string());
  std::string flipped = content;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  for (const std::string& changed : {content.substr(0, 100), flipped}) {
    Overwrite(shard, changed);
    EXPECT_TRUE(RefusedLoad(checkpoint).starts_with(shard.string()));
  }
  fs::remove(shard);
  EXPECT_TRUE(RefusedLoad(checkpoint).starts_with(shard.string()));
  const fs::path manifest = checkpoint / kManifestName;
  Overwrite(manifest, Slurp(manifest.string()) + " ");
  EXPECT_TRUE(RefusedLoad(checkpoint).starts_with(manifest.string()));
}

TEST_F(CheckpointDamageTest, ARankReadsOnlyWhatItNeeds) {
  const fs::path checkpoint = Save({1, 1, 4}, 1);
  fs::remove(checkpoint / ShardName(2, 4));
  const Outcome outcome = OnMesh({1, 1, 4}, [&](const Mesh& mesh) {
    TestRank rank(table_, mesh);
    try {
      LoadCheckpoint(checkpoint, ReadManifest(checkpoint), rank.params, rank.groups());
      EXPECT_NE(mesh.tensor().rank(), 2);
    } catch (const Error&) {
      EXPECT_EQ(mesh.tensor().rank(), 2);
    }
  });
}

TEST_F(CheckpointDamageTest, LoadingNamesTheTensorThatDoesNotFit) {
  const fs::path checkpoint = Save({}, 1);
  const auto refused = [&](const std::function<void(std::vector<ParamSpec>&)>& change) {
    std::vector<ParamSpec> specs = table_.specs();
    change(specs);
    ParamTable table;
    for (const ParamSpec& spec : specs) table.Add(spec);
    return BadInput([&] {
      const Mesh mesh;
      TestRank rank(table, mesh);
      LoadCheckpoint(checkpoint, ReadManifest(checkpoint), rank.params, rank.groups());
    });
  };
  EXPECT_NE(refused([](auto& specs) { specs[2].name = "other.g"; }).find("norm.g is not part"),
            std::string::npos);
  EXPECT_NE(refused([](auto& specs) {
              specs.push_back({.name = "new", .init = specs[0].init});
            }).find("new is missing"),
            std::string::npos);
  EXPECT_NE(refused([](auto& specs) {
              specs[1].shape = {16, 33};
            }).find("blocks.0.in.w is [33, 16], not [16, 33]"),
            std::string::npos);
  EXPECT_NE(BadInput([&] {
              const Mesh mesh;
              TestRank rank(table_, mesh);
              LoadCheckpoint(checkpoint, ReadManifest(checkpoint), rank.params,
                             {{"lion.m/", rank.m.flat_values()}});
            }).find("lion.m/embedding.w is missing"),
            std::string::npos);
}

TEST_F(CheckpointDamageTest, ManifestsThatMakeNoSenseAreRefused) {
  const fs::path checkpoint = Save({1, 1, 2}, 1);
  const config::Manifest good = ReadManifest(checkpoint);
  ASSERT_EQ(good.tensor(0).name(), "embedding.w");  // [8, 3], cut along axis 0
  const auto refused = [&](const std::function<void(config::Manifest&)>& change) {
    config::Manifest manifest = good;
    change(manifest);
    fs::remove(checkpoint / kManifestName);
    WriteManifest(checkpoint, manifest);
    const std::string message = BadInput([&] { ReadManifest(checkpoint); });
    EXPECT_TRUE(message.starts_with((checkpoint / kManifestName).string() + ":")) << message;
    return message;
  };
  const auto piece = [](config::Manifest& m) { return m.mutable_tensor(0)->mutable_piece(1); };
  EXPECT_NE(refused([](auto& m) { m.set_format_version(2); }).find("format_version: 2"),
            std::string::npos);
  EXPECT_NE(refused([](auto& m) { m.clear_format_version(); }).find("format_version"),
            std::string::npos);
  EXPECT_NE(refused([](auto& m) {
              m.mutable_tensor(0)->mutable_piece()->RemoveLast();
            }).find("embedding.w: a piece is missing"),
            std::string::npos);
  EXPECT_NE(refused([&](auto& m) { piece(m)->set_offset(0, 0); }).find("overlap"),
            std::string::npos);
  for (const auto& change : std::vector<std::function<void(config::Manifest&)>>{
           [&](auto& m) { piece(m)->set_offset(0, 5); },
           [&](auto& m) { piece(m)->set_offset(0, -1); },
           [&](auto& m) { piece(m)->set_shape(0, -4); },
           [&](auto& m) { piece(m)->set_shape(0, 3); }, [&](auto& m) { piece(m)->add_shape(1); },
           [&](auto& m) { piece(m)->set_file(2); }, [&](auto& m) { piece(m)->set_file(-1); },
           [&](auto& m) { piece(m)->set_file(0); },
           [](auto& m) { m.mutable_tensor(0)->set_dtype("F7"); },
           [](auto& m) { m.mutable_tensor(0)->set_shape(0, -8); },
           [](auto& m) { m.mutable_tensor(0)->set_shape(0, INT64_MAX); },
           [](auto& m) {
             for (int i = 0; i < 9; ++i) m.mutable_tensor(0)->add_shape(1);
           },
           [](auto& m) { m.mutable_tensor(1)->set_name("embedding.w"); },
           [](auto& m) { m.mutable_file(0)->set_name("../model.safetensors"); },
           [](auto& m) { m.mutable_file(0)->set_name(".."); },
           [](auto& m) { m.mutable_file(0)->set_name(""); },
           [](auto& m) { m.mutable_file(0)->set_name(m.file(1).name()); },
           [](auto& m) { m.mutable_file(0)->set_size(-1); }, [](auto& m) { m.set_step(-1); }}) {
    refused(change);
  }
}

// Lets no file grow beyond some bytes, as if the disk were full, while it lives.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit tight{bytes, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

TEST_F(CheckpointDamageTest, AFullDiskLeavesThePreviousCheckpoint) {
  const MeshShape shape{2, 1, 1};
  config::Config config = ConfigFor(shape);
  config.mutable_run()->set_directory(std::string(20000, 'x'));  // the manifest is the largest file
  ASSERT_EQ(TrySave(shape, 1, 7, config).codes, (std::vector<int>{0, 0}));
  const fs::path previous = checkpoints_ / "step-00000001";
  const auto files = Files(previous);
  const auto size = [&](const std::string& name) { return files.at(name).size(); };
  const std::string small = ShardName(0, 2), large = ShardName(1, 2);
  ASSERT_LT(size(small) + 1000, size(large));
  ASSERT_LT(size(large) + 1000, size(kManifestName));
  // No rank can write, or one of them, or the root its manifest when the shards are complete.
  struct Case {
    size_t limit;
    std::string culprit;
  };
  for (const Case& full : {Case{16, small}, Case{size(small), large},
                           Case{size(kManifestName) - 1000, kManifestName}}) {
    SCOPED_TRACE(full.culprit);
    for (const int64_t step : {1, 2}) {  // replacing it, and beside it
      Outcome outcome;
      {
        const FullDisk disk(full.limit);
        outcome = TrySave(shape, step, 8, config);
      }
      EXPECT_EQ(outcome.codes, (std::vector<int>{3, 3}));
      EXPECT_EQ(outcome.messages, 1);
      EXPECT_NE(outcome.message.find("/" + full.culprit + ": cannot write: "), std::string::npos)
          << outcome.message;
      EXPECT_EQ(outcome.message.find('\n'), std::string::npos);
      EXPECT_EQ(Names(), std::vector<std::string>{"step-00000001"});
      EXPECT_EQ(Files(previous), files);
    }
  }
  VerifyCheckpoint(previous);
  ExpectLoads(Save(shape, 2), {}, 2);
}

TEST_F(CheckpointDamageTest, AFullDiskStopsResharding) {
  const fs::path source = Save({}, 1);
  try {
    const FullDisk disk(1000);
    ReshardCheckpoint(source, Path("parent/out"), ConfigFor({1, 1, 2}).parallel(), table_);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kFailed) << error.what();
  }
  EXPECT_TRUE(fs::is_empty(Path("parent")));
}

}  // namespace
}  // namespace eyrie
