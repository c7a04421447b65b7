// What a training step takes, found by running it on a meta device: the trainer's own calls, on
// tensors without memory, among ranks that are not there. So whatever a layer saves, takes as
// scratch or sends is counted, and no layer has to declare it for the purpose.
#pragma once

#include <map>
#include <string>

#include "configs/schema/config.pb.h"
#include "core/kernel_times.h"
#include "core/precision.h"
#include "parallel/traffic.h"

namespace eyrie {

// Bytes of one rank, by kind.
struct MemoryUse {
  int64_t parameters = 0;
  int64_t gradients = 0;    // with ZeRO also the rank's part of their sum
  int64_t masters = 0;      // where the optimiser updates copies of the parameters
  int64_t moments = 0;      // of AdamW
  int64_t activations = 0;  // the arena at its fullest: what is saved, states, scratch
  int64_t buffers = 0;      // batches as they are read; scratch of the optimiser and of cuBLASLt
  int64_t reserved = 0;     // of the driver and libraries, where a plan knows (Hardware)
  int64_t copy = 0;         // that an asynchronous save writes from, in memory of the host; in a
                            // measure, the most that any rank takes

  // Of the device that computes.
  int64_t total(Device device) const {
    return parameters + gradients + masters + moments + activations + buffers + reserved +
           (device == Device::kCpu ? copy : 0);
  }
};

// "3.25 GiB".
std::string FormatBytes(double bytes);
inline std::string FormatBytes(int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); }

// Throws kBadInput, naming the field that has most to do with it, where rank `rank` takes more than
// `available` bytes of the device's memory, or of the host's.
void RequireMemory(const MemoryUse& taken, Device device, double available, int rank);
void RequireHostMemory(const MemoryUse& taken, double available, int rank);

struct StepMeasure {
  MemoryUse memory;
  MeshTraffic traffic;                        // what the rank sends in a step
  std::map<std::string, KernelWork> kernels;  // what it computes in one, by class of kernel
};

// Of rank `rank` on `device`, which need not be there. `config` is resolved and its layout valid;
// takes no memory that grows with the model.
StepMeasure MeasureStep(const config::Config& config, const Precision& precision, Device device,
                        int rank);

}  // namespace eyrie
