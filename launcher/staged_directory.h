// A directory that appears whole or not at all.
#pragma once

#include <filesystem>
#include <string>

namespace eyrie {

// A directory is filled under a temporary name and then renamed. Unless that happens it is removed
// by the destructor. Errors throw kFailed naming the directory and the reason.
class StagedDirectory {
 public:
  // Creates `temporary`, and its parents, after removing what an interrupted attempt left there.
  explicit StagedDirectory(std::filesystem::path temporary);
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  // Renames to `target`, in the same folder, once all of both folders is on disk. The files inside
  // are already. A `target` that exists is replaced: by exchanging the names where the file system
  // can, else it is called SetAsideName(target) for a moment.
  void Replace(const std::filesystem::path& target);
  // Likewise, but throws kBadInput if `target` exists.
  void Create(const std::filesystem::path& target);

 private:
  std::filesystem::path temporary_;
};

// A directory that a user wants created: absolute and without a slash at its end, so that it has a
// name and a parent. Throws kBadInput if `output` exists or is empty.
std::filesystem::path NewDirectory(const std::filesystem::path& output);

// Names beside `target`, the same for all calls of a process: of an unfinished directory and of
// one about to be removed. ".NAME.tmp-ID" and ".NAME.old-ID".
std::filesystem::path TemporaryName(const std::filesystem::path& target, int64_t id);
std::filesystem::path SetAsideName(const std::filesystem::path& target, int64_t id);

}  // namespace eyrie
