#include "launcher/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <set>
#include <string_view>
#include <system_error>

#include "launcher/agree.h"
#include "launcher/shard_files.h"
#include "launcher/staged_directory.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSentencePiece = "sentencepiece:";

// Completes every rank's manifest: each has filled in what it wrote itself, and zero is the start
// of everything else.
void ShareChecksums(Communicator& world, CheckpointPlan& plan) {
  std::vector<uint32_t> words;
  const auto visit = [&](const auto& number) {
    for (auto& file : *plan.manifest.mutable_file()) {
      file.set_size(static_cast<int64_t>(number(static_cast<uint64_t>(file.size()))));
      file.set_header_xxh3(number(file.header_xxh3()));
    }
    for (auto& tensor : *plan.manifest.mutable_tensor()) {
      for (auto& piece : *tensor.mutable_piece()) piece.set_xxh3(number(piece.xxh3()));
    }
  };
  visit([&](uint64_t number) {
    words.push_back(static_cast<uint32_t>(number));
    words.push_back(static_cast<uint32_t>(number >> 32));
    return number;
  });
  // Sums with one term that is not zero: no carries, so two halves make a whole again.
  const Tensor view{words.data(), DType::kI32, Device::kCpu, {static_cast<int64_t>(words.size())}};
  world.AllReduce(view, ReduceOp::kSum).Wait();
  size_t next = 0;
  visit([&](uint64_t) {
    const uint64_t low = words[next], high = words[next + 1];
    next += 2;
    return high << 32 | low;
  });
}

void CheckGroups(const ParamStore& store, const std::vector<NamedFlat>& groups) {
  for (const NamedFlat& group : groups) {
    const BucketPlan& plan = store.plan();
    const int64_t elements = group.owned ? plan.owned_elements() : plan.elements();
    EYRIE_CHECK(group.flat.size() == elements && group.flat.device == Device::kCpu, "\"",
                group.prefix, "\" is not laid out like the parameters");
  }
}

// The group that a tensor belongs to: what comes before its parameter's name.
std::string PrefixOf(const config::StoredTensor& tensor) {
  return tensor.name().substr(0, tensor.name().rfind('/') + 1);
}

bool HasGroup(const config::Manifest& manifest, const std::string& prefix) {
  return std::any_of(manifest.tensor().begin(), manifest.tensor().end(),
                     [&](const auto& tensor) { return PrefixOf(tensor) == prefix; });
}

char* At(const NamedFlat& group, int64_t offset) {
  return static_cast<char*>(group.flat.raw) +
         static_cast<size_t>(offset) * SizeOf(group.flat.dtype);
}

}  // namespace

void SaveCheckpoint(const fs::path& directory, const config::Config& config, const Mesh& mesh,
                    const ParamStore& store, const std::vector<NamedFlat>& groups,
                    const Position& position) {
  CheckGroups(store, groups);
  std::vector<StoredGroup> stored;
  for (const NamedFlat& group : groups)
    stored.push_back({group.prefix, group.flat.dtype, group.owned});
  CheckpointPlan plan = PlanCheckpoint(store.table(), stored, mesh.shape(), store.plan());
  plan.manifest.set_step(position.step);
  plan.manifest.set_samples(position.samples);
  plan.manifest.set_tokens(position.tokens);
  *plan.manifest.mutable_config() = config;

  Communicator& world = mesh.world();
  const auto id =
      static_cast<int64_t>(AllReduceValue(world, mesh.is_root() ? getpid() : 0, ReduceOp::kMax));
  const fs::path target = directory / CheckpointName(position.step);
  const fs::path temporary = TemporaryName(target, id);
  // Held by the root alone, and gone with it unless renamed: when an error leaves this function,
  // which it does after all ranks have stopped writing.
  std::optional<StagedDirectory> staged;
  Collectively(world, [&] {
    if (mesh.is_root()) staged.emplace(temporary);
  });
  Collectively(world, [&] {
    for (size_t file = 0; file < plan.files.size(); ++file) {
      if (plan.files[file].rank != world.rank()) continue;
      const auto source = [&](const PlannedPiece& piece) -> const void* {
        return At(groups[piece.group], piece.offset);
      };
      WriteShard(temporary, file, source, plan);
    }
  });
  ShareChecksums(world, plan);
  Collectively(world, [&] {
    if (!mesh.is_root()) return;
    const std::string& tokenizer = config.data().tokenizer();
    if (tokenizer.starts_with(kSentencePiece)) {
      AddFile(temporary, kTokenizerName, tokenizer.substr(kSentencePiece.size()), plan.manifest);
    }
    WriteManifest(temporary, plan.manifest);
    staged->Replace(target);
  });
}

Position LoadCheckpoint(const fs::path& checkpoint, const config::Manifest& manifest,
                        const ParamStore& store, const std::vector<NamedFlat>& groups) {
  CheckGroups(store, groups);
  ShardReader reader(checkpoint, manifest);
  std::set<std::string> expected;
  for (const NamedFlat& group : groups) {
    for (const ParamSpec& spec : store.table().specs()) expected.insert(group.prefix + spec.name);
  }
  for (const auto& stored : manifest.tensor()) {
    const std::string prefix = PrefixOf(stored);
    for (const NamedFlat& group : groups) {
      if (group.prefix == prefix && !expected.contains(stored.name())) {
        ThrowBadInput((checkpoint / kManifestName).string(), ": tensor ", stored.name(),
                      " is not part of the model");
      }
    }
  }
  const auto find = [&](const NamedFlat& group, ParamId param) {
    const ParamSpec& spec = store.table().spec(param);
    return reader.Find(group.prefix + spec.name, group.flat.dtype, spec.shape);
  };
  for (const NamedFlat& group : groups) {
    if (manifest.step() == 0 && !group.prefix.empty() && !HasGroup(manifest, group.prefix)) {
      FillZero(group.flat);
      continue;
    }
    if (group.owned && store.plan().sharded()) {
      for (const BucketPlan::Part& part : store.owned()) {
        const int tensor = find(group, part.param);
        int64_t offset = part.owned;
        for (const Slice& box :
             BoxesOf(store.slice(part.param), part.range.begin, part.range.end)) {
          reader.Read(tensor, box, At(group, offset));
          offset += box.extent.size();
        }
      }
      continue;
    }
    for (ParamId param = 0; param < static_cast<ParamId>(store.table().specs().size()); ++param) {
      reader.Read(find(group, param), store.slice(param), At(group, store.offset(param)));
    }
  }
  return {manifest.step(), manifest.samples(), manifest.tokens()};
}

CheckpointSize VerifyCheckpoint(const fs::path& checkpoint) {
  const config::Manifest manifest = ReadManifest(checkpoint);
  CheckpointSize size{1, manifest.tensor_size(),
                      static_cast<int64_t>(fs::file_size(checkpoint / kManifestName))};
  ShardReader reader(checkpoint, manifest);
  for (int file = 0; file < manifest.file_size(); ++file) {
    reader.VerifyFile(file);
    ++size.files;
    size.bytes += manifest.file(file).size();
  }
  return size;
}

}  // namespace eyrie
