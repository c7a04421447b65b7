#include "launcher/run_lock.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "core/error.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

fs::path LockFile(const fs::path& directory) { return directory / ".lock"; }

// Whether another process holds what `operation` asks for.
bool IsHeld(int descriptor, int operation) {
  return flock(descriptor, operation | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

[[noreturn]] void Refuse(const fs::path& directory) {
  ThrowBadInput("run.directory: another run is writing to ", directory.string());
}

}  // namespace

RunLock::RunLock(const fs::path& directory, std::chrono::milliseconds patience)
    : descriptor_(open(LockFile(directory).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) {
    ThrowBadInput("run.directory: cannot create ", LockFile(directory).string(), ": ",
                  std::strerror(errno));
  }
  const auto until = std::chrono::steady_clock::now() + patience;
  while (IsHeld(descriptor_, LOCK_EX)) {
    LOG_FIRST_N(WARNING, 1) << "waiting for another run that writes to " << directory.string();
    if (std::chrono::steady_clock::now() >= until) {
      close(descriptor_);
      Refuse(directory);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

RunLock::~RunLock() { close(descriptor_); }

void RequireUnlocked(const fs::path& directory) {
  const int descriptor = open(LockFile(directory).c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;  // no run has been here
  const bool held = IsHeld(descriptor, LOCK_SH);
  close(descriptor);
  if (held) Refuse(directory);
}

}  // namespace eyrie
