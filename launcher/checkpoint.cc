#include "launcher/checkpoint.h"

#include <algorithm>
#include <set>

#include "core/tensor_math.h"
#include "launcher/shard_files.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

bool HasGroup(const config::Manifest& manifest, const std::string& prefix) {
  return std::any_of(manifest.tensor().begin(), manifest.tensor().end(),
                     [&](const auto& tensor) { return GroupOf(tensor) == prefix; });
}

// The tensors of a checkpoint that belong to a store's parameters.
class Source {
 public:
  Source(const fs::path& checkpoint, const config::Manifest& manifest, const ParamStore& store)
      : checkpoint_(checkpoint),
        manifest_(manifest),
        table_(store.table()),
        reader_(checkpoint, manifest) {}

  // Throws if a group holds a tensor of no parameter.
  void RequireNoOthers(const std::string& prefix) const {
    std::set<std::string> expected;
    for (const ParamSpec& spec : table_.specs()) expected.insert(prefix + spec.name);
    for (const auto& stored : manifest_.tensor()) {
      if (GroupOf(stored) == prefix && !expected.contains(stored.name())) {
        ThrowBadInput((checkpoint_ / kManifestName).string(), ": tensor ", stored.name(),
                      " is not part of the model");
      }
    }
  }

  // `to` := a box of a parameter or of what a group holds for it, rounded to its type: parameters
  // are stored in full precision, whatever they are computed with.
  void Read(const std::string& prefix, ParamId param, const Slice& box, const Tensor& to) {
    const ParamSpec& spec = table_.spec(param);
    const DType stored = prefix.empty() ? FullPrecision(to.dtype) : to.dtype;
    const int tensor = reader_.Find(prefix + spec.name, stored, spec.shape);
    if (to.device == Device::kCpu && to.dtype == stored) return reader_.Read(tensor, box, to.raw);
    const OwnedTensor host(stored, to.shape), rounded(to.dtype, to.shape);
    reader_.Read(tensor, box, host.tensor.raw);
    Convert(host.tensor, rounded.tensor);
    Copy(rounded.tensor, to);
  }

 private:
  const fs::path& checkpoint_;
  const config::Manifest& manifest_;
  const ParamTable& table_;
  ShardReader reader_;
};

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
  Source source(checkpoint, manifest, store);
  for (const NamedFlat& group : groups) source.RequireNoOthers(group.prefix);
  for (const NamedFlat& group : groups) {
    if (manifest.step() == 0 && !group.prefix.empty() && !HasGroup(manifest, group.prefix)) {
      FillZero(group.flat);
      continue;
    }
    if (group.owned && store.plan().sharded()) {
      for (const BucketPlan::Part& part : store.owned()) {
        int64_t offset = part.owned;
        for (const Slice& box :
             BoxesOf(store.slice(part.param), part.range.begin, part.range.end)) {
          const int64_t end = offset + box.extent.size();
          source.Read(group.prefix, part.param, box, group.flat.Rows(offset, end));
          offset = end;
        }
      }
      continue;
    }
    for (ParamId param = 0; param < static_cast<ParamId>(store.table().specs().size()); ++param) {
      const int64_t begin = store.offset(param), end = begin + store.slice(param).extent.size();
      source.Read(group.prefix, param, store.slice(param), group.flat.Rows(begin, end));
    }
  }
  return {manifest.step(), manifest.samples(), manifest.tokens()};
}

void LoadParameters(const fs::path& checkpoint, const config::Manifest& manifest,
                    const ParamStore& store) {
  Source source(checkpoint, manifest, store);
  source.RequireNoOthers("");
  for (ParamId param = 0; param < static_cast<ParamId>(store.table().specs().size()); ++param) {
    source.Read("", param, store.slice(param), store.value(param));
  }
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
