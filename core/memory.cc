#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace eyrie {
namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;
constexpr size_t kHugePage = size_t{1} << 21;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

void Buffer::Free::operator()(void* pointer) const { std::free(pointer); }

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  // Long tensors in huge pages, where the system has them to give: reading main memory is up to
  // half as fast again, because fewer addresses need translating.
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t rounded = std::max((bytes + alignment - 1) / alignment * alignment, kAlignment);
  data_.reset(std::aligned_alloc(alignment, rounded));
  if (data_ == nullptr) ThrowFailure("out of memory: ", bytes, " bytes");
  if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
  std::memset(data_.get(), 0, rounded);
}

Tensor Buffer::At(size_t offset, DType dtype, Shape shape) const {
  Tensor tensor{static_cast<char*>(data()) + offset, dtype, Device::kCpu, shape};
  EYRIE_CHECK(offset + tensor.bytes() <= bytes_);
  return tensor;
}

OwnedTensor::OwnedTensor(DType dtype, Shape shape)
    : buffer(static_cast<size_t>(shape.size()) * SizeOf(dtype)),
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
    blocks_.emplace_back(std::max(last, wanted));
  }
  const Tensor tensor = blocks_[current_.block].At(current_.used, dtype, shape);
  current_.used += wanted;
  size_t in_use = current_.used;
  for (size_t block = 0; block < current_.block; ++block) in_use += blocks_[block].bytes();
  peak_ = std::max(peak_, in_use);
  return tensor;
}

}  // namespace eyrie
