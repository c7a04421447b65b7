// Moments in a rank's work. A GPU gets to its work later than the host gives it, so a moment there
// is marked in the order of a stream, and known once the stream has come to it.
#pragma once

#include <chrono>
#include <memory>
#include <utility>

#include "core/device.h"

namespace eyrie {

class Moment {
 public:
  using Clock = std::chrono::steady_clock;

  Moment() = default;  // before all others
  // The host's now.
  static Moment OnHost() { return Moment(Clock::now(), nullptr); }
  // On a GPU, when the compute stream has done what it was given so far; on a CPU, now.
  static Moment Of(Device device) {
    return device == Device::kCuda ? Moment({}, cuda::MarkStream()) : OnHost();
  }
  // Now, on the host's clock and on the device's: waits until the device has nothing to do.
  static Moment OnBoth(Device device) {
    Synchronize(device);
    Moment moment = Of(device);
    Synchronize(device);
    moment.host_ = Clock::now();
    return moment;
  }
  // When a stream of a GPU comes to a mark, of cuda::MarkStream.
  explicit Moment(std::shared_ptr<void> mark) : mark_(std::move(mark)) {}

  // `origin` is of OnBoth, if either is on a GPU. Waits for this moment to come.
  double SecondsSince(const Moment& origin) const {
    return mark_ != nullptr ? cuda::SecondsBetween(origin.mark_, mark_)
                            : std::chrono::duration<double>(host_ - origin.host_).count();
  }

 private:
  Moment(Clock::time_point host, std::shared_ptr<void> mark)
      : host_(host), mark_(std::move(mark)) {}

  Clock::time_point host_;
  std::shared_ptr<void> mark_;
};

}  // namespace eyrie
