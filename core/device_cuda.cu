// The CUDA side of core/device.h.
#include <cuda.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/cuda.h"
#include "core/device.h"
#include "core/region.h"
#include "core/round.h"

namespace eyrie {
namespace {

std::atomic<int64_t> memory_calls = 0;

// The driver's entry points, fetched at run time: nothing links against the driver.
template <class Function>
Function DriverFunction(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  EYRIE_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
  if (function == nullptr) ThrowFailure("the CUDA driver has no ", name);
  return reinterpret_cast<Function>(function);
}

struct Driver {
  decltype(&cuMemAddressReserve) reserve = DriverFunction<decltype(reserve)>("cuMemAddressReserve");
  decltype(&cuMemAddressFree) free_range = DriverFunction<decltype(free_range)>("cuMemAddressFree");
  decltype(&cuMemCreate) create = DriverFunction<decltype(create)>("cuMemCreate");
  decltype(&cuMemRelease) release = DriverFunction<decltype(release)>("cuMemRelease");
  decltype(&cuMemMap) map = DriverFunction<decltype(map)>("cuMemMap");
  decltype(&cuMemUnmap) unmap = DriverFunction<decltype(unmap)>("cuMemUnmap");
  decltype(&cuMemSetAccess) set_access = DriverFunction<decltype(set_access)>("cuMemSetAccess");
};

void Check(CUresult code, const char* what) {
  if (code == CUDA_ERROR_OUT_OF_MEMORY) ThrowFailure("out of GPU memory: ", what);
  if (code != CUDA_SUCCESS) ThrowFailure(what, ": CUDA driver error ", static_cast<int>(code));
}

int CurrentDevice() {
  int device = 0;
  EYRIE_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

int Attribute(cudaDeviceAttr attribute) {
  int value = 0;
  EYRIE_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, CurrentDevice()));
  return value;
}

// Physical pages mapped one after the other into a reserved range of addresses.
class CudaRegion final : public Region {
 public:
  CudaRegion() {
    CUdeviceptr address = 0;
    Check(driver_.reserve(&address, kReserved, 0, 0, 0), "cuMemAddressReserve");
    base_ = reinterpret_cast<char*>(address);
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties_.location.id = CurrentDevice();
  }
  ~CudaRegion() override {
    cudaStreamSynchronize(ComputeStream());
    ++memory_calls;
    const CUdeviceptr address = reinterpret_cast<CUdeviceptr>(base_);
    if (taken() > 0) driver_.unmap(address, taken());
    for (const CUmemGenericAllocationHandle page : pages_) driver_.release(page);
    driver_.free_range(address, kReserved);
  }
  CudaRegion(const CudaRegion&) = delete;
  CudaRegion& operator=(const CudaRegion&) = delete;

 protected:
  size_t Take(size_t from, size_t to) override {
    const size_t end = RoundUp(to, kGranule);
    if (end > kReserved) ThrowFailure("out of GPU memory: ", to, " bytes of scratch");
    ++memory_calls;
    CUmemGenericAllocationHandle page{};
    Check(driver_.create(&page, end - from, &properties_, 0), "scratch");
    pages_.push_back(page);
    const CUdeviceptr address = reinterpret_cast<CUdeviceptr>(base_) + from;
    Check(driver_.map(address, end - from, 0, page, 0), "cuMemMap");
    const CUmemAccessDesc access{properties_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    Check(driver_.set_access(address, end - from, &access, 1), "cuMemSetAccess");
    return end;
  }

 private:
  static constexpr size_t kReserved = size_t{1} << 40;
  static constexpr size_t kGranule = size_t{1} << 25;  // a multiple of the GPU's own

  Driver driver_;
  CUmemAllocationProp properties_{};
  std::vector<CUmemGenericAllocationHandle> pages_;
};

}  // namespace

int Multiprocessors() {
  static const int count = Attribute(cudaDevAttrMultiProcessorCount);
  return count;
}

size_t MostSharedMemory() {
  static const int most = Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return static_cast<size_t>(most);
}

void RequireSharedMemory(size_t bytes) {
  if (bytes <= MostSharedMemory()) return;
  ThrowFailure("this GPU gives a block of threads ", MostSharedMemory(),
               " bytes of shared memory, and a kernel for this model needs ", bytes);
}

namespace cuda {

int DeviceCount() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void SelectDevice(int index) { EYRIE_CUDA_CHECK(cudaSetDevice(index)); }

DeviceId IdOf(int index) {
  cudaDeviceProp properties{};
  EYRIE_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  DeviceId id;
  static_assert(sizeof(properties.uuid.bytes) == sizeof(id));
  std::copy_n(properties.uuid.bytes, id.size(), id.begin());
  return id;
}

std::string DeviceName() {
  cudaDeviceProp properties{};
  EYRIE_CUDA_CHECK(cudaGetDeviceProperties(&properties, CurrentDevice()));
  return properties.name;
}

size_t FreeMemory() {
  size_t free = 0, total = 0;
  EYRIE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

size_t TotalMemory() {
  size_t free = 0, total = 0;
  EYRIE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return total;
}

void* Allocate(size_t bytes) {
  ++memory_calls;
  void* pointer = nullptr;
  const cudaError_t code = cudaMalloc(&pointer, bytes == 0 ? 1 : bytes);
  if (code == cudaErrorMemoryAllocation) ThrowFailure("out of GPU memory: ", bytes, " bytes");
  CheckCuda(code, "cudaMalloc");
  Zero(pointer, bytes);
  return pointer;
}

void Free(void* pointer) {
  ++memory_calls;
  cudaFree(pointer);
}

int64_t MemoryCalls() { return memory_calls; }

void Copy(void* to, const void* from, size_t bytes, bool to_host) {
  EYRIE_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, ComputeStream()));
  if (to_host) EYRIE_CUDA_CHECK(cudaStreamSynchronize(ComputeStream()));
}

namespace {

// A thread copies a word; rows hold `words` of them.
template <class Word>
__global__ void CopyRowsKernel(char* to, size_t to_pitch, const char* from, size_t from_pitch,
                               size_t words, size_t count) {
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const size_t row = i / words, column = i % words * sizeof(Word);
  *reinterpret_cast<Word*>(to + row * to_pitch + column) =
      *reinterpret_cast<const Word*>(from + row * from_pitch + column);
}

}  // namespace

void CopyPitched(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes,
                 size_t rows) {
  // The driver's copy takes its time for each row: of many narrow ones, a kernel is faster. And it
  // refuses rows that start further apart than cudaDevAttrMaxPitch, as those of long sequences do.
  constexpr size_t kNarrow = 1024, kMaxPitch = (size_t{1} << 31) - 1;
  if (bytes <= kNarrow || std::max(to_pitch, from_pitch) > kMaxPitch) {
    const size_t common = to_pitch | from_pitch | bytes | reinterpret_cast<uintptr_t>(to) |
                          reinterpret_cast<uintptr_t>(from);
    const auto copy = [&]<class Word>(Word) {
      const size_t words = bytes / sizeof(Word), count = words * rows;
      constexpr unsigned kThreads = 256;
      Launch("CopyPitched", CopyRowsKernel<Word>, static_cast<unsigned>(CeilDiv(count, kThreads)),
             kThreads, 0, static_cast<char*>(to), to_pitch, static_cast<const char*>(from),
             from_pitch, words, count);
    };
    if (common % 16 == 0) return copy(uint4{});
    if (common % 4 == 0) return copy(uint32_t{});
    if (common % 2 == 0) return copy(uint16_t{});
    return copy(uint8_t{});
  }
  EYRIE_CUDA_CHECK(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, bytes, rows,
                                     cudaMemcpyDeviceToDevice, ComputeStream()));
}

void Zero(void* pointer, size_t bytes) {
  EYRIE_CUDA_CHECK(cudaMemsetAsync(pointer, 0, bytes, ComputeStream()));
}

uint64_t StartRange(const std::string& name) { return nvtxRangeStartA(name.c_str()); }
void EndRange(uint64_t range) { nvtxRangeEnd(range); }

void Synchronize() { EYRIE_CUDA_CHECK(cudaDeviceSynchronize()); }

namespace {

std::shared_ptr<void> NewEvent() {
  cudaEvent_t event = nullptr;
  EYRIE_CUDA_CHECK(cudaEventCreate(&event));
  return {event, [](void* handle) { cudaEventDestroy(static_cast<cudaEvent_t>(handle)); }};
}

cudaEvent_t Handle(const std::shared_ptr<void>& event) {
  return static_cast<cudaEvent_t>(event.get());
}

}  // namespace

std::shared_ptr<void> MarkStream(void* stream) {
  std::shared_ptr<void> mark = NewEvent();
  EYRIE_CUDA_CHECK(cudaEventRecord(
      Handle(mark), stream == nullptr ? ComputeStream() : static_cast<cudaStream_t>(stream)));
  return mark;
}

double SecondsBetween(const std::shared_ptr<void>& begin, const std::shared_ptr<void>& end) {
  for (const auto& mark : {begin, end}) EYRIE_CUDA_CHECK(cudaEventSynchronize(Handle(mark)));
  float milliseconds = 0.0f;
  EYRIE_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, Handle(begin), Handle(end)));
  return milliseconds * 1e-3;
}

double SecondsOf(const std::function<void()>& body) {
  const auto begin = NewEvent(), end = NewEvent();
  EYRIE_CUDA_CHECK(cudaEventRecord(Handle(begin), ComputeStream()));
  body();
  EYRIE_CUDA_CHECK(cudaEventRecord(Handle(end), ComputeStream()));
  return SecondsBetween(begin, end);
}

void* RecordGraph(const std::function<void()>& body) {
  cudaGraph_t graph = nullptr;
  EYRIE_CUDA_CHECK(cudaStreamBeginCapture(ComputeStream(), cudaStreamCaptureModeThreadLocal));
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(ComputeStream(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  EYRIE_CUDA_CHECK(cudaStreamEndCapture(ComputeStream(), &graph));
  cudaGraphExec_t ready = nullptr;
  EYRIE_CUDA_CHECK(cudaGraphInstantiate(&ready, graph, 0));
  EYRIE_CUDA_CHECK(cudaGraphDestroy(graph));
  return ready;
}

void LaunchGraph(void* graph) {
  EYRIE_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), ComputeStream()));
}

void DropGraph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

std::unique_ptr<Region> ReserveRegion() { return std::make_unique<CudaRegion>(); }

}  // namespace cuda
}  // namespace eyrie
