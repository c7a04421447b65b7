#include "core/kernel_times.h"

#include <exception>

#include "core/error.h"

namespace eyrie {

constinit thread_local KernelTimes* KernelTimes::current_ = nullptr;

KernelTimes::KernelTimes(Device device) : device_(device) {
  EYRIE_CHECK(current_ == nullptr, "kernels are being timed already");
  current_ = this;
}

KernelTimes::~KernelTimes() { current_ = nullptr; }

void KernelTimes::Begin(const char* kind, const KernelWork& work) {
  Account();
  open_.push_back(&entries_[kind]);
  open_.back()->work.Add(work);
  ++open_.back()->work.calls;
}

void KernelTimes::End() {
  Account();
  open_.pop_back();
}

void KernelTimes::Account() {
  Synchronize(device_);
  const auto now = std::chrono::steady_clock::now();
  if (!open_.empty()) {
    open_.back()->seconds += std::chrono::duration<double>(now - mark_).count();
  }
  mark_ = now;
}

KernelScope::~KernelScope() noexcept(false) {
  if (times_ != nullptr && std::uncaught_exceptions() == 0) times_->End();
}

}  // namespace eyrie
