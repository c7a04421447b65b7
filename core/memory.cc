#include "core/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace eyrie {
namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

void Buffer::Free::operator()(void* pointer) const {
  if (device != Device::kMeta) std::free(pointer);
}

Buffer::Buffer(size_t bytes, Device device) : data_(nullptr, Free{device}), bytes_(bytes) {
  if (device == Device::kMeta) {
    // An address that is never read, so that tensors there are not absent.
    data_.reset(reinterpret_cast<void*>(kAlignment));
    return;
  }
  EYRIE_CHECK(device == Device::kCpu);
  const size_t rounded = std::max(Aligned(bytes), kAlignment);
  data_.reset(std::aligned_alloc(kAlignment, rounded));
  if (data_ == nullptr) ThrowFailure("out of memory: ", bytes, " bytes");
  std::memset(data_.get(), 0, rounded);
}

Tensor Buffer::At(size_t offset, DType dtype, Shape shape) const {
  Tensor tensor{static_cast<char*>(data()) + offset, dtype, device(), shape};
  EYRIE_CHECK(offset + tensor.bytes() <= bytes_);
  return tensor;
}

OwnedTensor::OwnedTensor(DType dtype, Shape shape, Device device)
    : buffer(static_cast<size_t>(shape.size()) * SizeOf(dtype), device),
      tensor(buffer.At(0, dtype, shape)) {}

Tensor Arena::Allocate(DType dtype, Shape shape) {
  const size_t wanted = Aligned(static_cast<size_t>(shape.size()) * SizeOf(dtype));
  while (current_.block < blocks_.size() &&
         current_.used + wanted > blocks_[current_.block].bytes()) {
    ++current_.block;
    current_.used = 0;
  }
  if (current_.block == blocks_.size()) {
    const size_t last = blocks_.empty() ? kSmallestBlock : 2 * blocks_.back().bytes();
    blocks_.emplace_back(std::max(last, wanted), device_);
  }
  const Tensor tensor = blocks_[current_.block].At(current_.used, dtype, shape);
  current_.used += wanted;
  size_t in_use = current_.used;
  for (size_t block = 0; block < current_.block; ++block) in_use += blocks_[block].bytes();
  peak_ = std::max(peak_, in_use);
  return tensor;
}

}  // namespace eyrie
