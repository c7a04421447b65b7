#include "core/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace eyrie {
namespace {

[[noreturn]] void ThrowErrno(const std::filesystem::path& path, const char* action) {
  ThrowFailure(path.string(), ": cannot ", action, ": ", std::strerror(errno));
}

}  // namespace

OutputFile::OutputFile(const std::filesystem::path& path)
    : path_(path), descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) ThrowErrno(path_, "create");
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

void OutputFile::Write(const void* data, size_t bytes) {
  constexpr size_t kMostAtOnce = size_t{16} << 20;
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = write(descriptor_, next, std::min(bytes, kMostAtOnce));
    if (written < 0) {
      if (errno == EINTR) continue;
      ThrowErrno(path_, "write");
    }
    // The disk starts at once, instead of when Finish waits for it. Only a hint: errors come there.
    sync_file_range(descriptor_, size_, written, SYNC_FILE_RANGE_WRITE);
    next += written;
    bytes -= static_cast<size_t>(written);
    size_ += written;
  }
}

void OutputFile::Finish() {
  if (fsync(descriptor_) != 0) ThrowErrno(path_, "write");
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (close(descriptor) != 0) ThrowErrno(path_, "write");
}

void SyncDirectory(const std::filesystem::path& directory) {
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) ThrowErrno(directory, "open");
  // Some network file systems have no such notion, and say EINVAL.
  const bool failed = fsync(descriptor) != 0 && errno != EINVAL;
  const int problem = errno;
  close(descriptor);
  if (failed) {
    errno = problem;
    ThrowErrno(directory, "write");
  }
}

}  // namespace eyrie
