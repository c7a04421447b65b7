#include "launcher/hardware.h"

#include "launcher/config.h"
#include "launcher/config_limits.h"

namespace eyrie {

config::Hardware LoadHardware(const std::string& file) {
  config::Hardware hardware;
  if (file.empty()) return hardware;
  ParseTextFile(file, "hardware file", hardware);
  ConfigErrors errors;
  ValidateLimits(hardware, file + ": ", errors);
  const auto require = [&](const char* field, bool holds, const char* what) {
    if (!holds) errors.Add(file, ": ", field, " must ", what);
  };
  require("peak_flops", hardware.peak_flops() > 0, "be positive");
  require("achieved_flops",
          hardware.achieved_flops() > 0 && hardware.achieved_flops() <= hardware.peak_flops(),
          "be positive and at most peak_flops");
  require("memory_bandwidth", hardware.memory_bandwidth() > 0, "be positive");
  require("memory_bytes", hardware.memory_bytes() > 0, "be positive");
  require("reserved_bytes", hardware.reserved_bytes() >= 0, "not be negative");
  require("kernel_latency", hardware.kernel_latency() >= 0, "not be negative");
  require("fused_flops", hardware.fused_flops() > 0, "be positive");
  require("float32_flops", hardware.float32_flops() > 0, "be positive");
  require("scan_rate", hardware.scan_rate() > 0, "be positive");
  require("turn_latency", hardware.turn_latency() >= 0, "not be negative");
  require("ranks_per_node", hardware.ranks_per_node() > 0, "be positive");
  require("node_bandwidth", hardware.node_bandwidth() > 0, "be positive");
  require("node_latency", hardware.node_latency() >= 0, "not be negative");
  require("network_bandwidth", hardware.network_bandwidth() > 0, "be positive");
  require("network_latency", hardware.network_latency() >= 0, "not be negative");
  require("message_share", hardware.message_share() >= 0 && hardware.message_share() <= 1,
          "lie in [0, 1]");
  ThrowIfAny(errors);
  return hardware;
}

Device DeviceOf(const config::Hardware& hardware) {
  return hardware.device() == config::Hardware::GPU ? Device::kCuda : Device::kCpu;
}

}  // namespace eyrie
