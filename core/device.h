// Devices: what this build can compute on, and raw memory there. All work on a GPU is ordered on
// one stream, the compute stream (core/cuda.h); communication has streams of its own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/tensor.h"

namespace eyrie {

class Region;

#ifdef EYRIE_CUDA
inline constexpr bool kCudaBuild = true;
#else
inline constexpr bool kCudaBuild = false;
#endif

// Zero-filled memory, aligned to 256 bytes; throws where there is not enough. On a meta
// device, an address without memory.
void* AllocateBytes(Device device, size_t bytes);
void FreeBytes(Device device, void* pointer);
// Returns when the result can be used: on a GPU, by what is given to the compute stream next;
// on the host, at once.
void CopyBytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
void ZeroBytes(Device device, void* pointer, size_t bytes);
// Waits until the device has done all it was given.
void Synchronize(Device device);

// Runs work that is always the same, on the same memory, with less and less help of the host: on a
// GPU the second time it is recorded as a CUDA graph, which later calls launch as a whole.
class Replay {
 public:
  Replay();
  ~Replay();
  Replay(Replay&&) noexcept;
  void Run(Device device, const std::function<void()>& body);

 private:
  struct Graph;
  std::unique_ptr<Graph> graph_;
  bool ran_ = false;
};

// The bodies of a CUDA build. In others every one of them throws.
namespace cuda {
// GPUs of this node that this process sees.
int DeviceCount();
// Makes GPU `index` the one this process works on. Call once, before any memory is taken there.
void SelectDevice(int index);
// What no other GPU has.
using DeviceId = std::array<char, 16>;
DeviceId IdOf(int index);
// "NVIDIA H100 80GB HBM3".
std::string DeviceName();
// Bytes of the GPU's memory that nobody uses, and all there are.
size_t FreeMemory();
size_t TotalMemory();

void* Allocate(size_t bytes);
void Free(void* pointer);
// Calls so far of this process that took memory from the GPU's driver or gave it back: those above,
// and of regions.
int64_t MemoryCalls();
void Copy(void* to, const void* from, size_t bytes, bool to_host);
// `rows` pieces of `bytes` bytes, their starts `to_pitch` and `from_pitch` bytes apart.
void CopyPitched(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t bytes,
                 size_t rows);
void Zero(void* pointer, size_t bytes);
void Synchronize();
// The time that the GPU spends on what `body` gives to the compute stream, in seconds.
double SecondsOf(const std::function<void()>& body);
// A mark behind all that a cudaStream_t (null: the compute stream) has been given, and the time
// from one to another, once the device has come to both.
std::shared_ptr<void> MarkStream(void* stream = nullptr);
double SecondsBetween(const std::shared_ptr<void>& begin, const std::shared_ptr<void>& end);
// What `body` gives to the compute stream, which does not run yet; to be launched any number of
// times, then dropped.
void* RecordGraph(const std::function<void()>& body);
void LaunchGraph(void* graph);
void DropGraph(void* graph);
// A named range on the timeline of a profiler (NVTX), and the end of one.
uint64_t StartRange(const std::string& name);
void EndRange(uint64_t range);
std::unique_ptr<Region> ReserveRegion();
}  // namespace cuda

}  // namespace eyrie
