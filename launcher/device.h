// What a run computes on, and in which types.
#pragma once

#include <memory>

#include "configs/schema/config.pb.h"
#include "core/precision.h"
#include "core/tensor.h"
#include "layers/registry.h"
#include "parallel/communicator.h"

namespace eyrie {

// run.device; `auto` is a GPU where this build and this machine have one.
Device DeviceOf(const config::Config& config);
// train.precision and optimizer.moments, of a run on `device` or on DeviceOf(config); `AUTO` is
// MIXED on a GPU and FLOAT32 on the CPU.
Precision PrecisionOf(const config::Config& config, Device device);
Precision PrecisionOf(const config::Config& config);
// What is wrong with the types and the model on `device`; and with the device, and these on it, on
// this machine.
void ValidateOn(const config::Config& config, Device device, ConfigErrors& errors);
void ValidateDevice(const config::Config& config, ConfigErrors& errors);

// Bytes that a rank can have for what it computes with: what is free on its GPU, which must be
// selected, or an equal share of the memory of a node (NodeMemory) with so many ranks.
double AvailableMemory(Device device, int ranks_on_node);

// Makes this rank's GPU, if the run computes on GPUs, the one of its number on the node, or the
// only one that it sees, and gives back a communicator of the same ranks that also moves tensors
// between GPUs. Throws an AgreedError where two ranks of a node would share a GPU, or where some
// ranks have one and others none.
std::unique_ptr<Communicator> UseDevice(const config::Config& config,
                                        std::unique_ptr<Communicator> world);

}  // namespace eyrie
