#include "launcher/staged_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/output_file.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void ThrowErrno(const fs::path& path, const char* action, int problem) {
  ThrowFailure(path.string(), ": cannot ", action, ": ", std::strerror(problem));
}

int Rename(const fs::path& from, const fs::path& to, unsigned flags) {
  return renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0 ? 0 : errno;
}

// A file system without the flags of renameat2.
bool Unsupported(int problem) { return problem == EINVAL || problem == ENOSYS; }

// The folder is on disk with its entries, and so is its own entry, which may be new as well.
void SyncParents(const fs::path& target) {
  const fs::path parent = fs::absolute(target).parent_path();
  SyncDirectory(parent);
  SyncDirectory(parent.parent_path());
}

fs::path Beside(const fs::path& target, const char* kind, int64_t id) {
  return target.parent_path() / StrCat(".", target.filename().string(), kind, id);
}

}  // namespace

StagedDirectory::StagedDirectory(fs::path temporary) : temporary_(std::move(temporary)) {
  std::error_code error;
  fs::remove_all(temporary_, error);
  if (!error) fs::create_directories(temporary_, error);
  if (error) ThrowErrno(temporary_, "create", error.value());
}

StagedDirectory::~StagedDirectory() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void StagedDirectory::Replace(const fs::path& target) {
  SyncDirectory(temporary_);
  fs::path old = temporary_;  // where an exchange puts it
  int problem = Rename(temporary_, target, RENAME_NOREPLACE);
  if (problem == EEXIST) problem = Rename(temporary_, target, RENAME_EXCHANGE);
  if (Unsupported(problem)) {
    old = SetAsideName(target, getpid());
    const int absent = Rename(target, old, 0);
    if (absent != 0 && absent != ENOENT) ThrowErrno(target, "rename", absent);
    problem = Rename(temporary_, target, 0);
    if (problem != 0 && absent == 0) Rename(old, target, 0);
  }
  if (problem != 0) ThrowErrno(temporary_, "rename", problem);
  temporary_.clear();
  SyncParents(target);
  std::error_code ignored;  // the new one is in place: what is left is removed some other time
  fs::remove_all(old, ignored);
}

void StagedDirectory::Create(const fs::path& target) {
  SyncDirectory(temporary_);
  int problem = Rename(temporary_, target, RENAME_NOREPLACE);
  if (Unsupported(problem)) {
    std::error_code error;
    problem = fs::exists(target, error) ? EEXIST : Rename(temporary_, target, 0);
  }
  if (problem == EEXIST) ThrowBadInput(target.string(), ": exists already");
  if (problem != 0) ThrowErrno(target, "create", problem);
  temporary_.clear();
  SyncParents(target);
}

fs::path NewDirectory(const fs::path& output) {
  if (output.empty()) ThrowBadInput("the output directory has no name");
  std::error_code error;
  fs::path target = fs::absolute(output).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();
  if (fs::exists(fs::symlink_status(target, error))) {
    ThrowBadInput(output.string(), ": exists already");
  }
  return target;
}

fs::path TemporaryName(const fs::path& target, int64_t id) { return Beside(target, ".tmp-", id); }
fs::path SetAsideName(const fs::path& target, int64_t id) { return Beside(target, ".old-", id); }

}  // namespace eyrie
