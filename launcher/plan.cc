#include "launcher/plan.h"

#include <algorithm>

#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/hardware.h"
#include "layers/model.h"

namespace eyrie {
namespace {

// Which of a rank's links a group uses that reaches over `extent` successive ranks.
struct Link {
  Link(const config::Hardware& hardware, int64_t extent) {
    const int64_t node = hardware.ranks_per_node();
    const bool inside = extent <= node && node % extent == 0;
    bandwidth = inside ? hardware.node_bandwidth() : hardware.network_bandwidth();
    latency = inside ? hardware.node_latency() : hardware.network_latency();
  }
  double Seconds(const Traffic& traffic) const {
    return traffic.bytes / bandwidth + static_cast<double>(traffic.messages) * latency;
  }
  double bandwidth, latency;
};

// A matrix is multiplied with every token once, 2 FLOPs an element forward and 4 backward, and so
// is what else products do. A tied embedding, the first parameter, counts as the head, and
// otherwise not at all, because looking up takes no products.
void CountModel(const config::Config& config, Plan& plan) {
  const auto& train = config.train();
  const Model model(config.model(), plan.shape.tensor);
  const auto& specs = model.params().specs();
  int64_t matrices = 0;
  for (const ParamSpec& spec : specs) {
    const int64_t size = LocalSlice(spec, plan.shape.tensor, 0).extent.size();
    plan.local_parameters += size;
    const bool looked_up = !config.model().tied_embedding() && &spec == &specs.front();
    if (spec.weight_decay && !looked_up) matrices += size;  // else norms, biases, decays
  }
  plan.parameters = model.params().TotalElements();
  const int64_t share = train.sequence_length() / plan.shape.sequence;
  const int64_t before = MeshPlace(plan.shape, plan.rank).sequence * share;
  const auto sequences = static_cast<double>(plan.microbatches * train.micro_batch_size());
  plan.model_flops = 3.0 * sequences *
                     (2.0 * static_cast<double>(share) * static_cast<double>(matrices) +
                      model.ExtraFlops(before, share));
}

double SecondsOf(const std::string& kind, const KernelWork& work,
                 const config::Hardware& hardware) {
  const double flops = kind == kGemmKernels ? hardware.achieved_flops() : hardware.fused_flops();
  return static_cast<double>(work.calls) * hardware.kernel_latency() +
         work.bytes / hardware.memory_bandwidth() + work.products / flops +
         work.scans / hardware.scan_rate() + work.turns * hardware.turn_latency();
}

void PredictTime(const config::Hardware& hardware, Plan& plan) {
  const MeshShape shape = plan.shape;
  StepTime& time = plan.time;
  for (const auto& [kind, work] : plan.kernels) {
    plan.flops += work.products;
    plan.memory_traffic += work.bytes;
    const double seconds = SecondsOf(kind, work, hardware);
    time.by_kernel[kind] = seconds;
    time.kernels += seconds;
  }
  const int64_t sequence_extent = int64_t{shape.tensor} * shape.sequence;
  time.tensor = Link(hardware, shape.tensor).Seconds(plan.traffic.tensor);
  time.sequence = Link(hardware, sequence_extent).Seconds(plan.traffic.sequence);
  const Link everywhere(hardware, shape.ranks());
  time.replicas = everywhere.Seconds(plan.traffic.replicas) + everywhere.Seconds(plan.traffic.data);
  time.world = everywhere.Seconds(plan.traffic.world);

  // Forward waits for its sums over tensor ranks; backward's travel while the gradients of weights
  // are computed, a third of all products. What crosses the sequence axis travels under one product
  // of several, about a quarter of them all. Gradients travel under the last microbatch's backward
  // pass, two thirds of its work; gathered parameters under the next forward pass, the rest.
  const auto added = [&](double seconds, double cover) {
    const double hidden = std::min(seconds, cover);
    return seconds - hidden + hardware.message_share() * hidden;
  };
  const auto gemm = time.by_kernel.find(kGemmKernels);
  const double products = gemm == time.by_kernel.end() ? 0.0 : gemm->second;
  time.exposed = time.tensor / 2.0 + added(time.tensor / 2.0, products / 3.0) +
                 added(time.sequence, products / 4.0) +
                 added(time.replicas, time.kernels / static_cast<double>(plan.microbatches)) +
                 time.world;
  plan.tokens_per_second = static_cast<double>(plan.tokens) / time.total();
  plan.utilisation = plan.model_flops / (time.total() * hardware.peak_flops());
}

}  // namespace

Plan MakePlan(const config::Config& config, const config::Hardware& hardware) {
  const Device device = DeviceOf(hardware);
  const Precision precision = PrecisionOf(config, device);
  Plan plan;
  plan.shape = MeshShapeOf(config.parallel());
  plan.microbatches = Rounds(config);
  plan.tokens = config.train().global_batch_size() * config.train().sequence_length();
  // Ranks differ in how much they get from those of earlier chunks.
  for (int chunk = 0; chunk < plan.shape.sequence; ++chunk) {
    const int rank = chunk * plan.shape.tensor;
    StepMeasure measure = MeasureStep(config, precision, device, rank);
    measure.memory.reserved = static_cast<int64_t>(hardware.reserved_bytes());
    if (measure.memory.total() <= plan.memory.total()) continue;
    plan.rank = rank;
    plan.memory = measure.memory;
    plan.traffic = measure.traffic;
    plan.kernels = measure.kernels;
  }
  const auto activations = [&](config::TrainConfig::Recompute recompute) {
    config::Config other = config;
    other.mutable_train()->set_recompute(recompute);
    return MeasureStep(other, precision, device, plan.rank).memory.activations;
  };
  plan.activations_nothing = activations(config::TrainConfig::NOTHING);
  plan.activations_selective = activations(config::TrainConfig::SELECTIVE);
  plan.activations_blocks = activations(config::TrainConfig::BLOCKS);
  CountModel(config, plan);
  PredictTime(hardware, plan);
  return plan;
}

}  // namespace eyrie
