// Owned memory: a Buffer for what lives as long as the run, an Arena for what is used and dropped.
#pragma once

#include <cstddef>
#include <memory>

#include "core/region.h"
#include "core/tensor.h"

namespace eyrie {

// A zero-filled block of memory, aligned to a cache line or better. Movable, not copyable.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes, Device device = Device::kCpu);

  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }
  Device device() const { return data_.get_deleter().device; }
  // A tensor over this buffer, starting `offset` bytes in.
  Tensor At(size_t offset, DType dtype, Shape shape) const;

 private:
  struct Free {
    Device device;
    void operator()(void* pointer) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

// A tensor together with the memory under it.
struct OwnedTensor {
  OwnedTensor() = default;
  OwnedTensor(DType dtype, Shape shape, Device device = Device::kCpu);
  Buffer buffer;
  Tensor tensor;
};

// Stack allocation: memory is taken by Allocate and given back, all at once, by Rewind (see
// ArenaScope). It is one contiguous range that grows and never shrinks, so a training step repeats
// without asking the system for memory. Contents are not initialised. On a GPU the stack follows
// the order of the compute stream. On the host AddressSanitizer, in builds with it, finds whoever
// uses memory that was given back, or runs off the end of what was taken.
class Arena {
 public:
  using Mark = size_t;

  explicit Arena(Device device = Device::kCpu) : device_(device), region_(ReserveRegion(device)) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device device() const { return device_; }
  Tensor Allocate(DType dtype, Shape shape);
  Mark mark() const { return used_; }
  void Rewind(Mark mark);
  // The most bytes that were in use at one moment.
  size_t peak_bytes() const { return peak_; }

 private:
  Device device_;
  std::unique_ptr<Region> region_;
  size_t used_ = 0, peak_ = 0;
};

// Gives back, when it goes out of scope, all that was allocated since.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.Rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace eyrie
