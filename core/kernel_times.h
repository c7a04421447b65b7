// What a step's kernels have to do and the time that they take, by class of kernel: for benchmarks
// and, on a meta device, for plans. Otherwise nobody measures, and a scope costs a few sums.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "core/device.h"

namespace eyrie {

// What calls of a kernel have to do, on any hardware.
struct KernelWork {
  int64_t calls = 0;
  double bytes = 0.0;     // read and written in memory; what is updated in place counts twice
  double products = 0.0;  // FLOPs of matrix products
  double scans = 0.0;     // steps of one channel and state of a selective scan, an exponential each
  double turns = 0.0;     // steps that wait for one another: the tokens of an sLSTM

  // Adds what `times` as many calls as other's have to do.
  void Add(const KernelWork& other, int64_t times = 1) {
    const auto factor = static_cast<double>(times);
    calls += times * other.calls;
    bytes += factor * other.bytes;
    products += factor * other.products;
    scans += factor * other.scans;
    turns += factor * other.turns;
  }
};

// Of those that are given.
inline double BytesOf(std::initializer_list<Tensor> tensors) {
  double bytes = 0.0;
  for (const Tensor& tensor : tensors) {
    if (tensor.defined()) bytes += static_cast<double>(tensor.bytes());
  }
  return bytes;
}
// Of a kernel that reads or writes each of them once, and computes little.
inline KernelWork Moves(std::initializer_list<Tensor> tensors) {
  return {.bytes = BytesOf(tensors)};
}

// The class of matrix products (core/blas.h).
inline constexpr const char* kGemmKernels = "gemm";

// What this thread's kernels take while the object lives; one at a time. Every kernel then has the
// device to itself, from its call until the device is done: the times add up, and what overlapped
// with the host's work, or with messages, no longer does.
class KernelTimes {
 public:
  struct Entry {
    KernelWork work;
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
  void Begin(const char* kind, const KernelWork& work);
  void End();
  // Waits for the device, and adds the time since the last call to the innermost open scope.
  void Account();

  static constinit thread_local KernelTimes* current_;

  Device device_;
  std::map<std::string, Entry> entries_;
  std::vector<Entry*> open_;
  std::chrono::steady_clock::time_point mark_;
};

// The call of a kernel, to the end of the scope. `kind` is its class: for kernels/ the folder. On a
// meta device too, so that what a step has to do can be counted there.
class KernelScope {
 public:
  explicit KernelScope(const char* kind, const KernelWork& work = {})
      : times_(KernelTimes::current_) {
    if (times_ != nullptr) times_->Begin(kind, work);
  }
  ~KernelScope() noexcept(false);
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  KernelTimes* times_;
};

}  // namespace eyrie
