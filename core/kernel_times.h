// Where the time of a step goes, by class of kernel: for benchmarks. Otherwise nobody measures, and
// a scope costs the look at one pointer.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/device.h"

namespace eyrie {

// What this thread's kernels take while the object lives; one at a time. Every kernel then has the
// device to itself, from its call until the device is done: the times add up, and what overlapped
// with the host's work, or with messages, no longer does.
class KernelTimes {
 public:
  struct Entry {
    int64_t calls = 0;
    double seconds = 0;  // without the kernels that it called in turn
  };

  explicit KernelTimes(Device device);
  ~KernelTimes();
  KernelTimes(const KernelTimes&) = delete;
  KernelTimes& operator=(const KernelTimes&) = delete;

  // By class.
  const std::map<std::string, Entry>& entries() const { return entries_; }

 private:
  friend class KernelScope;
  void Begin(const char* kind);
  void End();
  // Waits for the device, and adds the time since the last call to the innermost open scope.
  void Account();

  static constinit thread_local KernelTimes* current_;

  Device device_;
  std::map<std::string, Entry> entries_;
  std::vector<Entry*> open_;
  std::chrono::steady_clock::time_point mark_;
};

// The call of a kernel, to the end of the scope. `kind` is its class: for kernels/ the folder.
class KernelScope {
 public:
  explicit KernelScope(const char* kind) : times_(KernelTimes::current_) {
    if (times_ != nullptr) times_->Begin(kind);
  }
  ~KernelScope() noexcept(false);
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  KernelTimes* times_;
};

}  // namespace eyrie
