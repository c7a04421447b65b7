// Finding and removing checkpoints among the entries of a checkpoints/ folder.
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <map>
#include <string_view>
#include <system_error>

#include "launcher/agree.h"
#include "launcher/checkpoint.h"
#include "launcher/manifest.h"
#include "launcher/staged_directory.h"
#include "parallel/text_messages.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

enum class Kind { kCheckpoint, kTemporary, kSetAside };

struct Entry {
  Kind kind = Kind::kCheckpoint;
  int64_t step = 0;
};

// step-00000100, .step-00000100.tmp-ID or .step-00000100.old-ID
std::optional<Entry> ParseName(std::string_view name) {
  const bool hidden = name.starts_with('.');
  name.remove_prefix(hidden ? 1 : 0);
  constexpr std::string_view kStep = "step-";
  constexpr size_t kDigits = 8;
  if (!name.starts_with(kStep)) return std::nullopt;
  name.remove_prefix(kStep.size());
  Entry entry;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data(), end, entry.step);
  const auto digits = static_cast<size_t>(rest - name.data());
  if (error != std::errc() || digits < kDigits || name[0] == '-') return std::nullopt;
  name.remove_prefix(digits);
  if (!hidden) return name.empty() ? std::optional(entry) : std::nullopt;
  if (name.starts_with(".tmp-")) {
    entry.kind = Kind::kTemporary;
  } else if (name.starts_with(".old-")) {
    entry.kind = Kind::kSetAside;
  } else {
    return std::nullopt;
  }
  return entry;
}

bool IsCheckpoint(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / kManifestName, error);
}

struct Folder {
  std::map<int64_t, fs::path> checkpoints;
  std::vector<fs::path> leftovers;
};

Folder List(const fs::path& directory) {
  Folder folder;
  std::map<int64_t, fs::path> set_aside;
  std::error_code error;
  fs::directory_iterator iterator(directory, error);
  for (; !error && iterator != fs::directory_iterator(); iterator.increment(error)) {
    const fs::path path = iterator->path();
    const std::optional<Entry> entry = ParseName(path.filename().string());
    if (!entry) continue;
    if (entry->kind == Kind::kCheckpoint && IsCheckpoint(path)) {
      folder.checkpoints[entry->step] = path;
    } else if (entry->kind == Kind::kSetAside && IsCheckpoint(path) &&
               set_aside.emplace(entry->step, path).second) {
      // decided below
    } else if (entry->kind != Kind::kCheckpoint) {
      folder.leftovers.push_back(path);
    }
  }
  if (error && error != std::errc::no_such_file_or_directory &&
      error != std::errc::not_a_directory) {
    ThrowBadInput(directory.string(), ": cannot be read: ", error.message());
  }
  // A checkpoint set aside counts until the one that replaces it is there.
  for (const auto& [step, path] : set_aside) {
    if (!folder.checkpoints.emplace(step, path).second) folder.leftovers.push_back(path);
  }
  return folder;
}

void Remove(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) ThrowFailure(path.string(), ": cannot remove: ", error.message());
}

}  // namespace

std::string CheckpointName(int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
  return name;
}

void PruneCheckpoints(const fs::path& directory, int64_t keep) {
  const Folder folder = List(directory);
  std::optional<Error> first;
  const auto attempt = [&](const auto& body) {
    try {
      body();
    } catch (const Error& error) {
      if (!first) first = error;
    }
  };
  for (const fs::path& path : folder.leftovers) attempt([&] { Remove(path); });
  int64_t excess = static_cast<int64_t>(folder.checkpoints.size()) - keep;
  for (auto each = folder.checkpoints.begin(); keep > 0 && excess > 0; ++each, --excess) {
    attempt([&, step = each->first, path = each->second] {
      // Under another name first: half a checkpoint must not look like one.
      const fs::path doomed = TemporaryName(directory / CheckpointName(step), getpid());
      std::error_code error;
      fs::rename(path, doomed, error);
      if (error) ThrowFailure(path.string(), ": cannot remove: ", error.message());
      Remove(doomed);
    });
  }
  if (first) throw Error(*first);
}

std::optional<fs::path> NewestCheckpoint(const fs::path& directory) {
  const Folder folder = List(directory);
  if (folder.checkpoints.empty()) return std::nullopt;
  return folder.checkpoints.rbegin()->second;
}

fs::path FindCheckpoint(const fs::path& path) {
  if (path.empty()) ThrowBadInput("the path of a checkpoint is empty");
  if (IsCheckpoint(path)) return path;
  if (const auto newest = NewestCheckpoint(path / "checkpoints")) return *newest;
  if (const auto newest = NewestCheckpoint(path)) return *newest;
  std::error_code error;
  if (!fs::exists(path, error)) ThrowBadInput(path.string(), ": no such directory");
  ThrowBadInput(path.string(), ": holds no complete checkpoint");
}

std::optional<FoundCheckpoint> FindOnRoot(Communicator& world,
                                          const std::function<std::optional<fs::path>()>& find) {
  FoundCheckpoint found;
  std::string manifest;
  Collectively(world, [&] {
    if (world.rank() != 0) return;
    found.path = find().value_or("");
    if (found.path.empty()) return;
    found.manifest = ReadManifest(found.path);
    manifest = found.manifest.SerializeAsString();
  });
  found.path = BroadcastText(world, found.path.string());
  if (found.path.empty()) return std::nullopt;
  const std::string text = BroadcastText(world, manifest);
  EYRIE_CHECK(found.manifest.ParseFromString(text));
  return found;
}

}  // namespace eyrie
