// One job at a time writes into a run's directory.
#pragma once

#include <chrono>
#include <filesystem>

namespace eyrie {

// The lock of a run's directory: a file `.lock` there, locked by flock(2), so that the system lets
// go of it with the process, however that ends. File systems without locks keep nobody out.
class RunLock {
 public:
  // Takes the lock in an existing directory, if need be after waiting up to `patience` for another
  // run. Throws kBadInput.
  RunLock(const std::filesystem::path& directory, std::chrono::milliseconds patience);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_;
};

// Throws kBadInput where a run holds the lock now; takes and creates nothing.
void RequireUnlocked(const std::filesystem::path& directory);

}  // namespace eyrie
