#include "launcher/plan.h"

#include <algorithm>

#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/hardware.h"
#include "layers/model.h"

namespace eyrie {
namespace {

// What a rank's messages go through in a group of `size` ranks, `stride` of the job's ranks apart:
// the node's links where they reach no further, otherwise the network, to which the group's ranks
// of a node bring the connection of each of them. Collectives share their bytes out among these, as
// NCCL's rings do; what goes from one rank to one other is little.
struct Link {
  Link(const config::Hardware& hardware, int64_t size, int64_t stride) {
    const int64_t node = hardware.ranks_per_node(), extent = size * stride;
    const bool inside = extent <= node && node % extent == 0;
    const int64_t in_node = std::max<int64_t>(1, node / stride);
    bandwidth = inside ? hardware.node_bandwidth()
                       : std::min(hardware.node_bandwidth(),
                                  static_cast<double>(in_node) * hardware.network_bandwidth());
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

// Where the tensor cores do not help, as with float32 on a GPU, all products run alike. An sLSTM's
// turns are those of the whole sequence: a rank's wait for those of the chunks before its own.
double SecondsOf(const std::string& kind, const KernelWork& work, const config::Hardware& hardware,
                 bool full_precision, int sequence_ranks) {
  const double flops = full_precision         ? hardware.float32_flops()
                       : kind == kGemmKernels ? hardware.achieved_flops()
                                              : hardware.fused_flops();
  return static_cast<double>(work.calls) * hardware.kernel_latency() +
         work.bytes / hardware.memory_bandwidth() + work.products / flops +
         work.scans / hardware.scan_rate() + work.turns * sequence_ranks * hardware.turn_latency();
}

void PredictTime(const config::Hardware& hardware, const Precision& precision, Plan& plan) {
  const MeshShape shape = plan.shape;
  const bool full_precision = IsGpu(DeviceOf(hardware)) && precision.activations == DType::kF32;
  StepTime& time = plan.time;
  for (const auto& [kind, work] : plan.kernels) {
    plan.flops += work.products;
    plan.memory_traffic += work.bytes;
    const double seconds = SecondsOf(kind, work, hardware, full_precision, shape.sequence);
    time.by_kernel[kind] = seconds;
    time.kernels += seconds;
  }
  const int64_t tensor = shape.tensor, replicas = int64_t{shape.sequence} * shape.data;
  time.tensor = Link(hardware, tensor, 1).Seconds(plan.traffic.tensor);
  time.sequence = Link(hardware, shape.sequence, tensor).Seconds(plan.traffic.sequence);
  time.replicas = Link(hardware, replicas, tensor).Seconds(plan.traffic.replicas) +
                  Link(hardware, shape.data, tensor * shape.sequence).Seconds(plan.traffic.data);
  time.world = Link(hardware, shape.ranks(), 1).Seconds(plan.traffic.world);

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
    if (measure.memory.total(device) <= plan.memory.total(device)) continue;
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
  PredictTime(hardware, precision, plan);
  return plan;
}

}  // namespace eyrie
