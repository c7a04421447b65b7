// Checkpoints of ranks that share the moments out among themselves.
#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "launcher/bucket_options.h"
#include "launcher/config.h"
#include "launcher/reshard.h"
#include "launcher/shard_files.h"
#include "tests/launcher/checkpoint_util.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// A layout; with `bucket_bytes` above 0, under ZeRO.
struct Layout {
  MeshShape mesh;
  int64_t bucket_bytes = 0;
};
const Layout kLayouts[] = {{{1, 1, 1}},    {{2, 1, 2}},          {{4, 1, 1}, 1}, {{4, 1, 1}, 512},
                           {{2, 1, 2}, 1}, {{2, 2, 1}, 1 << 20}, {{5, 2, 2}, 1}, {{1, 1, 4}, 1}};

config::Config ConfigOf(const Layout& layout) {
  config::Config config = ConfigFor(layout.mesh);
  if (layout.bucket_bytes > 0) {
    config.mutable_parallel()->set_zero(config::ParallelConfig::OPTIMIZER_STATE);
    config.mutable_parallel()->set_bucket_bytes(layout.bucket_bytes);
  }
  return config;
}

// One rank's parameters, and what it owns of the moments.
struct ZeroRank {
  ZeroRank(const ParamTable& table, const Mesh& mesh, const Layout& layout)
      : params(table, mesh, DType::kF32, false, BucketOptionsOf(ConfigOf(layout).parallel())),
        whole(table, mesh),
        m(DType::kF32, {params.plan().owned_elements()}),
        v(DType::kF32, {params.plan().owned_elements()}) {}
  void Fill(uint64_t seed) {
    params.Initialise(seed);
    whole.Fill(seed);
    for (const BucketPlan::Part& part : params.owned()) {
      for (const auto& [from, to] : {std::pair{&whole.m, &m}, std::pair{&whole.v, &v}}) {
        const float* source = from->value(part.param).data<float>() + part.range.begin;
        std::copy_n(source, part.range.size(), to->tensor.data<float>() + part.owned);
      }
    }
  }
  std::vector<NamedFlat> groups() const {
    return {{"", params.flat_values()},
            {"adamw.m/", m.tensor, /*owned=*/true},
            {"adamw.v/", v.tensor, /*owned=*/true}};
  }
  ParamStore params;
  TestRank whole;
  OwnedTensor m, v;
};

class CheckpointZeroTest : public CheckpointTest {
 protected:
  fs::path Save(const Layout& layout, int64_t step) const {
    const config::Config config = ConfigOf(layout);
    const Outcome outcome = OnMesh(layout.mesh, [&](const Mesh& mesh) {
      ZeroRank rank(table_, mesh, layout);
      rank.Fill(7);
      SaveCheckpoint(checkpoints_, config, mesh, rank.params, rank.groups(), PositionAt(step));
    });
    EXPECT_EQ(outcome.codes, std::vector<int>(outcome.codes.size(), 0)) << outcome.message;
    return checkpoints_ / CheckpointName(step);
  }
  void ExpectLoads(const fs::path& checkpoint, const Layout& layout) const {
    const Outcome outcome = OnMesh(layout.mesh, [&](const Mesh& mesh) {
      ZeroRank loaded(table_, mesh, layout), expected(table_, mesh, layout);
      expected.Fill(7);
      LoadCheckpoint(checkpoint, ReadManifest(checkpoint), loaded.params, loaded.groups());
      for (size_t i = 0; i < 3; ++i) {
        EXPECT_TRUE(SameBits(loaded.groups()[i].flat, expected.groups()[i].flat)) << i;
      }
    });
    EXPECT_EQ(outcome.codes, std::vector<int>(outcome.codes.size(), 0)) << outcome.message;
  }
};

TEST_F(CheckpointZeroTest, EveryLayoutLoadsAndReshardsEveryLayout) {
  constexpr int kCount = std::size(kLayouts);
  std::vector<fs::path> checkpoints;
  for (int i = 0; i < kCount; ++i) {
    checkpoints.push_back(Save(kLayouts[i], i));
    VerifyCheckpoint(checkpoints.back());
  }
  for (int saved = 0; saved < kCount; ++saved) {
    for (int loaded = 0; loaded < kCount; ++loaded) {
      SCOPED_TRACE(StrCat("layout ", saved, " to ", loaded));
      ExpectLoads(checkpoints[static_cast<size_t>(saved)], kLayouts[loaded]);
      // As its ranks would have written it, but for the step.
      const fs::path output = Path(StrCat("reshard-", saved, "-", loaded));
      ReshardCheckpoint(checkpoints[static_cast<size_t>(saved)], output,
                        ConfigOf(kLayouts[loaded]).parallel(), table_);
      auto files = Files(output), expected = Files(checkpoints[static_cast<size_t>(loaded)]);
      config::Manifest manifest = ReadManifest(output);
      const config::Manifest own = ReadManifest(checkpoints[static_cast<size_t>(loaded)]);
      manifest.set_step(own.step());
      manifest.set_samples(own.samples());
      manifest.set_tokens(own.tokens());
      EXPECT_EQ(ToText(manifest), ToText(own));
      files.erase(kManifestName);
      expected.erase(kManifestName);
      EXPECT_EQ(files, expected);
    }
  }
}

// Of a run in mixed precision the masters are stored, which any layout loads in any precision.
TEST_F(CheckpointZeroTest, MastersMoveBetweenLayoutsAndPrecisions) {
  const auto store = [&](const Mesh& mesh, const Layout& layout, const Precision& precision) {
    return std::make_unique<ParamStore>(table_, mesh, precision, /*with_gradients=*/true,
                                        BucketOptionsOf(ConfigOf(layout).parallel()));
  };
  const auto groups = [](const ParamStore& params) {
    const Tensor masters = params.masters();
    return std::vector<NamedFlat>{masters.defined() ? NamedFlat{"", masters, /*owned=*/true}
                                                    : NamedFlat{"", params.flat_values()}};
  };
  int64_t step = 0;
  for (const Layout& from : kLayouts) {
    const fs::path checkpoint = checkpoints_ / CheckpointName(++step);
    OnMesh(from.mesh, [&](const Mesh& mesh) {
      const auto params = store(mesh, from, Precision::Mixed());
      params->Initialise(7);
      SaveCheckpoint(checkpoints_, ConfigOf(from), mesh, *params, groups(*params),
                     PositionAt(step));
    });
    for (const Layout& to : kLayouts) {
      for (const Precision& precision : {Precision(DType::kF32), Precision::Mixed()}) {
        SCOPED_TRACE(StrCat(from.mesh.ranks(), " to ", to.mesh.ranks(), " ranks"));
        const Outcome outcome = OnMesh(to.mesh, [&](const Mesh& mesh) {
          const auto loaded = store(mesh, to, precision), expected = store(mesh, to, precision);
          expected->Initialise(7);
          LoadCheckpoint(checkpoint, ReadManifest(checkpoint), *loaded, groups(*loaded));
          EXPECT_TRUE(SameBits(groups(*loaded)[0].flat, groups(*expected)[0].flat));
          if (precision.has_masters()) loaded->PublishMasters();
          for (ParamId id = 0; id < static_cast<ParamId>(table_.specs().size()); ++id) {
            EXPECT_TRUE(SameBits(loaded->value(id), expected->value(id))) << table_.spec(id).name;
          }
        });
        EXPECT_EQ(outcome.codes, std::vector<int>(outcome.codes.size(), 0)) << outcome.message;
      }
    }
  }
}

TEST_F(CheckpointZeroTest, EveryElementIsWrittenOnceByItsOwner) {
  const fs::path checkpoint = Save({{4, 1, 1}, 1}, 1);
  const config::Manifest manifest = ReadManifest(checkpoint);
  EXPECT_EQ(manifest.file_size(), 4);
  int64_t elements = 0;
  for (int file = 0; file < 4; ++file) {
    const SafetensorsFile shard(checkpoint / ShardName(file, 4));
    for (const auto& entry : shard.entries()) elements += static_cast<int64_t>(entry.bytes / 4);
    // [33, 16], with the place of each row in turn: many pieces in a file, each with its own key.
    const int owner = (2 + 32) % 4;  // of row 32: two such places lie before row 0
    EXPECT_EQ(shard.Find("adamw.m/blocks.0.in.w@32,0") != nullptr, file == owner);
  }
  EXPECT_EQ(elements, 3 * table_.TotalElements());
  // A parameter itself is still one piece.
  EXPECT_EQ(manifest.tensor(1).piece_size(), 1);
  EXPECT_FALSE(manifest.tensor(1).piece(0).has_key());
}

TEST_F(CheckpointZeroTest, PiecesOfTheSameNameInOneFileAreRefused) {
  const fs::path checkpoint = Save({{4, 1, 1}, 1}, 1);
  config::Manifest manifest = ReadManifest(checkpoint);
  config::StoredTensor* moment = nullptr;
  for (auto& tensor : *manifest.mutable_tensor()) {
    if (tensor.name() == "adamw.m/blocks.0.in.w") moment = &tensor;
  }
  ASSERT_NE(moment, nullptr);
  config::Piece& first = *moment->mutable_piece(0);
  config::Piece& second = *moment->mutable_piece(1);
  ASSERT_EQ(first.file(), second.file());
  const auto refused = [&](const std::string& problem) {
    fs::remove(checkpoint / kManifestName);
    WriteManifest(checkpoint, manifest);
    const std::string message = BadInput([&] { ReadManifest(checkpoint); });
    EXPECT_NE(message.find(problem), std::string::npos) << message;
  };
  const config::Piece good = second;
  second.set_key(first.key());
  refused("two pieces in one file are called");
  second = good;
  second.set_offset(0, first.offset(0));
  refused("pieces that overlap");
  second = good;
  second.set_key("not there");
  fs::remove(checkpoint / kManifestName);
  WriteManifest(checkpoint, manifest);
  EXPECT_NE(BadInput([&] { VerifyCheckpoint(checkpoint); }).find("no tensor not there"),
            std::string::npos);
}

TEST_F(CheckpointZeroTest, TheLargestShardIsKnownWithoutThePlanOfAll) {
  for (const Layout& layout : kLayouts) {
    SCOPED_TRACE(StrCat(layout.mesh.data, " x ", layout.mesh.sequence, " x ", layout.mesh.tensor,
                        ", ", layout.bucket_bytes));
    const BucketPlan buckets(table_, layout.mesh, BucketOptionsOf(ConfigOf(layout).parallel()),
                             /*mixed=*/true);
    for (const bool masters : {false, true}) {
      const std::vector<StoredGroup> groups = {{"", DType::kF32, masters},
                                               {"adamw.m/", DType::kBF16, true},
                                               {"adamw.v/", DType::kBF16, true}};
      const CheckpointPlan plan = PlanCheckpoint(table_, groups, layout.mesh, buckets);
      size_t most = 0;
      for (const CheckpointPlan::File& file : plan.files) {
        size_t bytes = 0;
        for (const PlannedPiece& piece : file.pieces) bytes += BytesOf(plan, piece);
        most = std::max(most, bytes);
      }
      EXPECT_EQ(LargestShard(table_, groups, layout.mesh, buckets), static_cast<int64_t>(most));
    }
  }
}

}  // namespace
}  // namespace eyrie
