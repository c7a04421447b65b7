#include "core/memory.h"

#include <algorithm>

#include "core/device.h"

namespace eyrie {
namespace {
// A cache line, and the unit of a GPU's memory traffic.
constexpr size_t kAlignment = 256;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
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

Tensor Arena::Allocate(DType dtype, Shape shape) {
  const size_t bytes = Aligned(static_cast<size_t>(shape.size()) * SizeOf(dtype));
  region_->Grow(used_ + bytes);
  const Tensor tensor{region_->base() + used_, dtype, device_, shape};
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return tensor;
}

}  // namespace eyrie
