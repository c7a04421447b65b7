// A contiguous range of a device's addresses that takes memory as it grows: what is reserved costs
// nothing, what has been taken stays where it is.
#pragma once

#include <cstddef>
#include <memory>

#include "core/tensor.h"

namespace eyrie {

class Region {
 public:
  virtual ~Region() = default;
  // Makes the first `bytes` usable. Those that already were keep their contents.
  void Grow(size_t bytes) {
    if (bytes > taken_) taken_ = Take(taken_, bytes);
  }
  char* base() const { return base_; }
  // Bytes of memory under the range.
  size_t taken() const { return taken_; }

 protected:
  // Takes memory for [from, to) or somewhat more; returns the new end.
  virtual size_t Take(size_t from, size_t to) = 0;
  char* base_ = nullptr;

 private:
  size_t taken_ = 0;
};

std::unique_ptr<Region> ReserveRegion(Device device);

}  // namespace eyrie
