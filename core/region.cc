#include "core/region.h"

#include <sys/mman.h>

#include "core/device.h"
#include "core/round.h"

namespace eyrie {
namespace {

constexpr size_t kReserved = size_t{1} << 40;
constexpr size_t kGranule = size_t{1} << 20;

class HostRegion final : public Region {
 public:
  HostRegion() {
    // Without access, a reservation counts against no limit on memory.
    void* address =
        mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) ThrowFailure("cannot reserve a range of addresses");
    base_ = static_cast<char*>(address);
    madvise(base_, kReserved, MADV_HUGEPAGE);  // where the system has them: see AllocateBytes
  }
  ~HostRegion() override { munmap(base_, kReserved); }
  HostRegion(const HostRegion&) = delete;
  HostRegion& operator=(const HostRegion&) = delete;

 protected:
  size_t Take(size_t from, size_t to) override {
    const size_t end = RoundUp(to, kGranule);
    if (end > kReserved || mprotect(base_ + from, end - from, PROT_READ | PROT_WRITE) != 0) {
      ThrowFailure("out of memory: ", to, " bytes of scratch");
    }
    return end;
  }
};

// Addresses alone, for meta tensors.
class MetaRegion final : public Region {
 public:
  MetaRegion() { base_ = static_cast<char*>(AllocateBytes(Device::kMeta, 0)); }

 protected:
  size_t Take(size_t, size_t to) override { return to; }
};

}  // namespace

std::unique_ptr<Region> ReserveRegion(Device device) {
  if (IsMeta(device)) return std::make_unique<MetaRegion>();
  if (device == Device::kCuda) return cuda::ReserveRegion();
  return std::make_unique<HostRegion>();
}

}  // namespace eyrie
