#include "core/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/region.h"
#include "core/round.h"

namespace eyrie {
namespace {
constexpr size_t kAlignment = 256;
constexpr size_t kHugePage = size_t{1} << 21;

// Never read: tensors on a meta device must only not be absent.
void* const kMetaAddress = reinterpret_cast<void*>(kAlignment);
}  // namespace

void* AllocateBytes(Device device, size_t bytes) {
  if (device == Device::kCuda) return cuda::Allocate(bytes);
  if (IsMeta(device)) return kMetaAddress;
  // Long tensors in huge pages, where the system has them to give: reading main memory is up to
  // half as fast again, because fewer addresses need translating.
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  const size_t rounded = std::max(RoundUp(bytes, alignment), kAlignment);
  void* pointer = std::aligned_alloc(alignment, rounded);
  if (pointer == nullptr) ThrowFailure("out of memory: ", bytes, " bytes");
  if (alignment == kHugePage) madvise(pointer, rounded, MADV_HUGEPAGE);
  std::memset(pointer, 0, rounded);
  return pointer;
}

void FreeBytes(Device device, void* pointer) {
  if (device == Device::kCuda) return cuda::Free(pointer);
  if (IsMeta(device)) return;
  std::free(pointer);
}

void CopyBytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  if (IsMeta(to_device) || IsMeta(from_device)) {
    EYRIE_CHECK(to_device == from_device, "a meta tensor has no elements");
    return;
  }
  if (to_device == Device::kCpu && from_device == Device::kCpu) {
    std::memcpy(to, from, bytes);
  } else {
    cuda::Copy(to, from, bytes, to_device == Device::kCpu);
  }
}

void ZeroBytes(Device device, void* pointer, size_t bytes) {
  if (bytes == 0 || IsMeta(device)) return;
  if (device == Device::kCuda) return cuda::Zero(pointer, bytes);
  std::memset(pointer, 0, bytes);
}

void Synchronize(Device device) {
  if (device == Device::kCuda) cuda::Synchronize();
}

struct Replay::Graph {
  explicit Graph(const std::function<void()>& body) : handle(cuda::RecordGraph(body)) {}
  ~Graph() { cuda::DropGraph(handle); }
  void* handle;
};

Replay::Replay() = default;
Replay::~Replay() = default;
Replay::Replay(Replay&&) noexcept = default;

void Replay::Run(Device device, const std::function<void()>& body) {
  // The first time takes memory and chooses algorithms, which cannot be recorded.
  if (device != Device::kCuda || !std::exchange(ran_, true)) return body();
  if (graph_ == nullptr) graph_ = std::make_unique<Graph>(body);
  cuda::LaunchGraph(graph_->handle);
}

#ifndef EYRIE_CUDA
namespace cuda {
namespace {
[[noreturn]] void Refuse() { ThrowFailure("this build of eyrie has no CUDA backend"); }
}  // namespace

int DeviceCount() { return 0; }
void SelectDevice(int) { Refuse(); }
DeviceId IdOf(int) { Refuse(); }
std::string DeviceName() { Refuse(); }
size_t FreeMemory() { Refuse(); }
size_t TotalMemory() { Refuse(); }
void* Allocate(size_t) { Refuse(); }
void Free(void*) { Refuse(); }
int64_t MemoryCalls() { Refuse(); }
void Copy(void*, const void*, size_t, bool) { Refuse(); }
void CopyPitched(void*, size_t, const void*, size_t, size_t, size_t) { Refuse(); }
void Zero(void*, size_t) { Refuse(); }
void Synchronize() { Refuse(); }
double SecondsOf(const std::function<void()>&) { Refuse(); }
std::shared_ptr<void> MarkStream(void*) { Refuse(); }
double SecondsBetween(const std::shared_ptr<void>&, const std::shared_ptr<void>&) { Refuse(); }
void* RecordGraph(const std::function<void()>&) { Refuse(); }
void LaunchGraph(void*) { Refuse(); }
void DropGraph(void*) {}
uint64_t StartRange(const std::string&) { Refuse(); }
void EndRange(uint64_t) { Refuse(); }
std::unique_ptr<Region> ReserveRegion() { Refuse(); }
}  // namespace cuda
#endif

}  // namespace eyrie
