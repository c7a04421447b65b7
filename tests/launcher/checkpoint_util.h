// What the checkpoint tests share: a small table of parameters, and ranks, as threads, that save
// and load it under any layout.
#pragma once

#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "tests/launcher/temp_folder.h"
#include "tests/support/fake_communicator.h"
#include "tests/support/save_checkpoint.h"

namespace eyrie {

// Every kind of sharding; extents that divide by 4. The second parameter is by far the largest, the
// last but one has full precision.
inline ParamTable MakeTable() {
  ParamTable table;
  const InitFn init = InitNormal(1.0);
  table.Add({.name = "embedding.w", .shape = {8, 3}, .shard_axis = 0, .init = init});
  table.Add({.name = "blocks.0.in.w", .shape = {33, 16}, .shard_axis = 1, .init = init});
  table.Add({.name = "blocks.0.norm.g", .shape = {7}, .init = init});
  table.Add({.name = "blocks.0.heads.w", .shape = {2, 4, 5}, .shard_axis = 1, .init = init});
  table.Add(
      {.name = "blocks.0.b", .shape = {12}, .shard_axis = 0, .full_precision = true, .init = init});
  table.Add({.name = "scale", .shape = {}, .init = init});
  return table;
}

// One rank's parameters and moments; `seed` decides all values.
struct TestRank {
  TestRank(const ParamTable& table, const Mesh& mesh, DType dtype = DType::kF32)
      : params(table, mesh, dtype, false),
        m(table, mesh, dtype, false),
        v(table, mesh, dtype, false) {}
  void Fill(uint64_t seed) {
    params.Initialise(seed);
    m.Initialise(seed + 1000);
    v.Initialise(seed + 2000);
  }
  std::vector<NamedFlat> groups() const {
    return {
        {"", params.flat_values()}, {"adamw.m/", m.flat_values()}, {"adamw.v/", v.flat_values()}};
  }
  ParamStore params, m, v;
};

inline bool SameBits(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.bytes() == b.bytes() && std::memcmp(a.raw, b.raw, a.bytes()) == 0;
}

inline config::Config ConfigFor(MeshShape shape) {
  config::Config config;
  config.mutable_model()->set_width(16);
  config.mutable_parallel()->set_data(shape.data);
  config.mutable_parallel()->set_sequence(shape.sequence);
  config.mutable_parallel()->set_tensor(shape.tensor);
  return config;
}

inline Position PositionAt(int64_t step) { return {step, step * 8, step * 8 * 64}; }

// An error as every rank saw it; codes are 0 where there was none.
struct Outcome {
  std::vector<int> codes;
  std::string message;  // of the one rank that has it
  int messages = 0;
};

// Runs body(mesh) on all ranks of a mesh and collects how it ended.
inline Outcome OnMesh(MeshShape shape, const std::function<void(const Mesh&)>& body) {
  Outcome outcome;
  std::mutex mutex;
  RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh(shape, std::move(world));
    int code = 0;
    std::string message;
    try {
      body(mesh);
    } catch (const Error& error) {
      code = static_cast<int>(error.code());
      message = error.what();
    }
    const std::lock_guard lock(mutex);
    outcome.codes.push_back(code);
    if (!message.empty()) outcome.message = message;
    outcome.messages += message.empty() ? 0 : 1;
  });
  return outcome;
}

// Every file of a directory: its name and content.
inline std::map<std::string, std::string> Files(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::ifstream in(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] = {std::istreambuf_iterator<char>(in), {}};
  }
  return files;
}

class CheckpointTest : public TempFolderTest {
 protected:
  CheckpointTest() : checkpoints_(Path("run/checkpoints")) {}

  Outcome TrySave(MeshShape shape, int64_t step, uint64_t seed, const config::Config& config,
                  DType dtype = DType::kF32) const {
    return OnMesh(shape, [&](const Mesh& mesh) {
      TestRank rank(table_, mesh, dtype);
      rank.Fill(seed);
      SaveCheckpoint(checkpoints_, config, mesh, rank.params, rank.groups(), PositionAt(step));
    });
  }
  // Saves, which must succeed, and returns the checkpoint.
  std::filesystem::path Save(MeshShape shape, int64_t step, uint64_t seed = 7,
                             DType dtype = DType::kF32) const {
    const Outcome outcome = TrySave(shape, step, seed, ConfigFor(shape), dtype);
    EXPECT_EQ(outcome.codes, std::vector<int>(outcome.codes.size(), 0)) << outcome.message;
    return checkpoints_ / CheckpointName(step);
  }
  // Loading under `shape` gives the very bits that filling with `seed` does.
  void ExpectLoads(const std::filesystem::path& checkpoint, MeshShape shape, int64_t step,
                   uint64_t seed = 7, DType dtype = DType::kF32) const {
    const Outcome outcome = OnMesh(shape, [&](const Mesh& mesh) {
      TestRank loaded(table_, mesh, dtype), expected(table_, mesh, dtype);
      expected.Fill(seed);
      const Position position =
          LoadCheckpoint(checkpoint, ReadManifest(checkpoint), loaded.params, loaded.groups());
      EXPECT_EQ(position.step, step);
      EXPECT_EQ(position.samples, PositionAt(step).samples);
      EXPECT_EQ(position.tokens, PositionAt(step).tokens);
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(SameBits(loaded.groups()[i].flat, expected.groups()[i].flat)) << i;
      }
    });
    EXPECT_EQ(outcome.codes, std::vector<int>(outcome.codes.size(), 0)) << outcome.message;
  }
  // The message of a load on one rank, which must be refused.
  std::string RefusedLoad(const std::filesystem::path& checkpoint) const {
    return BadInput([&] {
      const Mesh mesh;
      TestRank rank(table_, mesh);
      LoadCheckpoint(checkpoint, ReadManifest(checkpoint), rank.params, rank.groups());
    });
  }
  // The names in checkpoints/, hidden ones too.
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(checkpoints_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  const ParamTable table_ = MakeTable();
  const std::filesystem::path checkpoints_;
};

}  // namespace eyrie
