#include "launcher/reshard.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/mapped_file.h"
#include "core/memory.h"
#include "launcher/bucket_options.h"
#include "launcher/config.h"
#include "launcher/manifest.h"
#include "launcher/shard_files.h"
#include "launcher/staged_directory.h"
#include "layers/model.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// The groups of a checkpoint, in its order: what comes before its parameters' names. All but the
// parameters themselves is the optimiser's state.
std::vector<StoredGroup> GroupsOf(const config::Manifest& manifest) {
  std::vector<StoredGroup> groups;
  for (const auto& tensor : manifest.tensor()) {
    const std::string prefix = GroupOf(tensor);
    const auto same = [&](const StoredGroup& group) { return group.prefix == prefix; };
    if (std::none_of(groups.begin(), groups.end(), same)) {
      groups.push_back({prefix, DTypeOfStored(tensor), /*owned=*/!prefix.empty()});
    }
  }
  return groups;
}

}  // namespace

void ReshardCheckpoint(const fs::path& checkpoint, const fs::path& output,
                       const config::ParallelConfig& parallel) {
  constexpr int64_t kMostRanks = int64_t{1} << 20;
  config::ParallelConfig layout = parallel;
  if (layout.data() == 0) layout.set_data(1);
  int64_t ranks = 1;
  for (const int64_t extent : {layout.data(), layout.sequence(), layout.tensor()}) {
    if (extent < 1) ThrowBadInput("parallel.{tensor,data,sequence} must be positive");
    ranks *= extent;
    if (ranks > kMostRanks) ThrowBadInput("parallel: more than ", kMostRanks, " ranks");
  }
  // The rules for a job of this layout, whatever device the checkpoint comes from.
  config::Config job = ReadManifest(checkpoint).config();
  *job.mutable_parallel() = layout;
  job.clear_run();
  Resolve(job, static_cast<int>(ranks));
  const Model model(job.model(), layout.tensor());
  ReshardCheckpoint(checkpoint, output, job.parallel(), model.params());
}

void ReshardCheckpoint(const fs::path& checkpoint, const fs::path& output,
                       const config::ParallelConfig& parallel, const ParamTable& table) {
  const config::Manifest manifest = ReadManifest(checkpoint);
  const fs::path target = NewDirectory(output);
  const MeshShape mesh = MeshShapeOf(parallel);
  const BucketPlan buckets(table, mesh, BucketOptionsOf(parallel));
  CheckpointPlan plan = PlanCheckpoint(table, GroupsOf(manifest), mesh, buckets);
  if (plan.manifest.tensor_size() != manifest.tensor_size()) {
    ThrowBadInput((checkpoint / kManifestName).string(), ": holds ", manifest.tensor_size(),
                  " tensors, but its model has ", plan.manifest.tensor_size());
  }
  plan.manifest.set_step(manifest.step());
  plan.manifest.set_samples(manifest.samples());
  plan.manifest.set_tokens(manifest.tokens());
  *plan.manifest.mutable_config() = manifest.config();
  *plan.manifest.mutable_config()->mutable_parallel() = parallel;

  ShardReader reader(checkpoint, manifest);
  StagedDirectory staged(TemporaryName(target, getpid()));
  for (size_t file = 0; file < plan.files.size(); ++file) {
    Buffer buffer;
    const auto source = [&](const PlannedPiece& piece) -> const void* {
      const auto& stored = plan.manifest.tensor(piece.tensor);
      const Slice slice = SliceOf(stored.piece(piece.piece));
      const DType dtype = DTypeOfStored(stored);
      const size_t bytes = BytesOf(plan, piece);
      if (bytes > buffer.bytes()) buffer = Buffer(bytes);
      reader.Read(reader.Find(stored.name(), dtype, table.spec(piece.param).shape), slice,
                  buffer.data());
      return buffer.data();
    };
    WriteShard(staged.path(), file, source, plan);
  }
  for (int file = 0; file < manifest.file_size(); ++file) {
    if (IsShard(manifest.file(file))) continue;
    reader.VerifyFile(file);
    const std::string& name = manifest.file(file).name();
    AddFile(staged.path(), name, MappedFile(checkpoint / name).bytes(), plan.manifest);
  }
  WriteManifest(staged.path(), plan.manifest);
  staged.Create(target);
}

}  // namespace eyrie
