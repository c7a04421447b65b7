#include "launcher/checkpoint.h"

#include <algorithm>
#include <set>

#include "core/tensor_math.h"
#include "launcher/shard_files.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// The group that a tensor belongs to: what comes before its parameter's name.
std::string PrefixOf(const config::StoredTensor& tensor) {
  return tensor.name().substr(0, tensor.name().rfind('/') + 1);
}

bool HasGroup(const config::Manifest& manifest, const std::string& prefix) {
  return std::any_of(manifest.tensor().begin(), manifest.tensor().end(),
                     [&](const auto& tensor) { return PrefixOf(tensor) == prefix; });
}

}  // namespace

char* NamedFlat::At(int64_t offset) const {
  return static_cast<char*>(flat.raw) + static_cast<size_t>(offset) * SizeOf(flat.dtype);
}

void CheckGroups(const ParamStore& store, const std::vector<NamedFlat>& groups) {
  for (const NamedFlat& group : groups) {
    const BucketPlan& plan = store.plan();
    const int64_t elements = group.owned ? plan.owned_elements() : plan.elements();
    EYRIE_CHECK(group.flat.size() == elements, "\"", group.prefix,
                "\" is not laid out like the parameters");
  }
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
  // Parameters are stored in full precision, whatever they are computed with.
  const auto stored_type = [](const NamedFlat& group) {
    return group.prefix.empty() ? FullPrecision(group.flat.dtype) : group.flat.dtype;
  };
  const auto find = [&](const NamedFlat& group, ParamId param) {
    const ParamSpec& spec = store.table().spec(param);
    return reader.Find(group.prefix + spec.name, stored_type(group), spec.shape);
  };
  const auto read = [&](int tensor, const Slice& box, const NamedFlat& group, int64_t offset) {
    const int64_t size = box.extent.size();
    const Tensor to = group.flat.Rows(offset, offset + size);
    if (to.device == Device::kCpu && to.dtype == stored_type(group)) {
      return reader.Read(tensor, box, to.raw);
    }
    const OwnedTensor host(stored_type(group), {size}), rounded(to.dtype, {size});
    reader.Read(tensor, box, host.tensor.raw);
    Convert(host.tensor, rounded.tensor);
    Copy(rounded.tensor, to);
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
          read(tensor, box, group, offset);
          offset += box.extent.size();
        }
      }
      continue;
    }
    for (ParamId param = 0; param < static_cast<ParamId>(store.table().specs().size()); ++param) {
      read(find(group, param), store.slice(param), group, store.offset(param));
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
