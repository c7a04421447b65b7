// A named range of time on the timeline of NVIDIA's profilers, e.g. `nsys profile eyrie train`. In
// a build without CUDA there is none.
#pragma once

#include <cstdint>
#include <string>

#include "core/device.h"

namespace eyrie {

// From construction to destruction; ranges may overlap, as those of a batch's slices do. An NVTX
// start/end range, which costs next to nothing where no profiler listens.
class ProfilerRange {
 public:
  // Called `what` followed by `how`; without a name there is no range.
  explicit ProfilerRange([[maybe_unused]] const std::string& what,
                         [[maybe_unused]] const char* how = "") {
    if constexpr (kCudaBuild) {
      if (!what.empty()) id_ = cuda::StartRange(what + how);
    }
  }
  ~ProfilerRange() {
    if constexpr (kCudaBuild) {
      if (id_ != 0) cuda::EndRange(id_);
    }
  }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;

 private:
  uint64_t id_ = 0;
};

}  // namespace eyrie
