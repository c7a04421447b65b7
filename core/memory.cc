#include "core/memory.h"

#include <algorithm>

#include "core/device.h"
#include "core/round.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace eyrie {
namespace {
// A cache line, and the unit of a GPU's memory traffic.
constexpr size_t kAlignment = 256;

// Tells AddressSanitizer who may touch memory of the host. Without it these are nothing.
#ifdef __SANITIZE_ADDRESS__
void Forbid(Device device, char* memory, size_t bytes) {
  if (device == Device::kCpu) ASAN_POISON_MEMORY_REGION(memory, bytes);
}
void Allow(Device device, char* memory, size_t bytes) {
  if (device == Device::kCpu) ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
}
#else
void Forbid(Device, char*, size_t) {}
void Allow(Device, char*, size_t) {}
#endif
}  // namespace

void Buffer::Free::operator()(void* pointer) const { FreeBytes(device, pointer); }

Buffer::Buffer(size_t bytes, Device device)
    : data_(AllocateBytes(device, bytes), Free{device}), bytes_(bytes) {}

Tensor Buffer::At(size_t offset, DType dtype, Shape shape) const {
  Tensor tensor{static_cast<char*>(data()) + offset, dtype, device(), shape};
  EYRIE_CHECK(offset + tensor.bytes() <= bytes_);
  return tensor;
}

OwnedTensor::OwnedTensor(DType dtype, Shape shape, Device device)
    : buffer(static_cast<size_t>(shape.size()) * SizeOf(dtype), device),
      tensor(buffer.At(0, dtype, shape)) {}

// Other memory may come to lie at these addresses.
Arena::~Arena() { Allow(device_, region_->base(), peak_); }

Tensor Arena::Allocate(DType dtype, Shape shape) {
  const Tensor tensor{region_->base() + used_, dtype, device_, shape};
  const size_t bytes = RoundUp(tensor.bytes(), kAlignment);
  region_->Grow(used_ + bytes);
  Forbid(device_, region_->base() + used_, bytes);
  Allow(device_, region_->base() + used_, tensor.bytes());
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return tensor;
}

void Arena::Rewind(Mark mark) {
  Forbid(device_, region_->base() + mark, used_ - mark);
  used_ = mark;
}

}  // namespace eyrie
