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

// Elements of all matrices on a tensor rank: each is multiplied with every token once. A tied
// embedding, the first parameter, counts as the head, and otherwise not at all, because looking up
// takes no products; then the head is the last parameter.
struct MatrixElements {
  MatrixElements(const ParamTable& table, int tensor_size, bool tied) {
    for (const ParamSpec& spec : table.specs()) {
      const int64_t size = LocalSlice(spec, tensor_size, 0).extent.size();
      local += size;
      if (!spec.weight_decay) continue;  // norms, biases, decays
      if (!tied && &spec == &table.specs().front()) continue;
      matrices += size;
      if (&spec == (tied ? &table.specs().front() : &table.specs().back())) head = size;
    }
  }
  int64_t local = 0, matrices = 0, head = 0;
};

void CountWork(const config::Config& config, const Precision& precision, Plan& plan) {
  const auto& train = config.train();
  const Model model(config.model(), plan.shape.tensor);
  const MatrixElements elements(model.params(), plan.shape.tensor, config.model().tied_embedding());
  plan.parameters = model.params().TotalElements();
  plan.local_parameters = elements.local;

  // A token takes 2 FLOPs for each element of a matrix forward and 4 backward, and so for what else
  // products do. Recomputation and chunks each take the forward pass once more, but for the head.
  const int64_t share = train.sequence_length() / plan.shape.sequence;
  const int64_t before = MeshPlace(plan.shape, plan.rank).sequence * share;
  const auto sequences = static_cast<double>(plan.microbatches * train.micro_batch_size());
  const double tokens = sequences * static_cast<double>(share);
  const double head = 2.0 * tokens * static_cast<double>(elements.head);
  const double forward = 2.0 * tokens * static_cast<double>(elements.matrices) +
                         sequences * model.ExtraFlops(before, share);
  const bool recomputes = RecomputeOf(train) == Recompute::kBlocks;
  const int64_t chunk = train.chunk_length() == 0 ? share : std::min(train.chunk_length(), share);
  const double advanced = 1.0 - static_cast<double>(chunk) / static_cast<double>(share);
  plan.model_flops = 3.0 * forward;
  plan.flops = plan.model_flops + ((recomputes ? 1.0 : 0.0) + advanced) * (forward - head);

  // Elementwise kernels move what is saved: forward writes it and reads it, backward reads it, and
  // writes and reads as large a gradient; a second forward pass repeats the first, a selective one
  // reads and writes again what is not kept.
  const double pieces = static_cast<double>(plan.microbatches) * static_cast<double>(share) /
                        static_cast<double>(chunk);
  const auto saved = [&](int64_t bytes) { return pieces * static_cast<double>(bytes); };
  const double all = saved(plan.activations_nothing);
  double moved = (5.0 + 2.0 * advanced) * all;
  if (recomputes) moved += 2.0 * all;
  if (RecomputeOf(train) == Recompute::kSelective) {
    moved += 2.0 * (all - saved(plan.activations_selective));
  }
  // The optimiser reads the sum of gradients twice (for its norm), reads and writes masters and
  // moments, and writes the values; gradients are zeroed.
  const MemoryUse& memory = plan.memory;
  const auto owners = config.parallel().zero() == config::ParallelConfig::OPTIMIZER_STATE
                          ? static_cast<double>(plan.shape.data) * plan.shape.sequence
                          : 1.0;
  const auto per_owner = [&](DType dtype) {
    return static_cast<double>(elements.local) * static_cast<double>(SizeOf(dtype)) / owners;
  };
  const double update =
      2.0 * per_owner(precision.gradients) + 2.0 * per_owner(precision.masters) +
      2.0 * static_cast<double>(memory.moments) +
      (precision.has_masters() ? static_cast<double>(memory.parameters) / owners : 0.0);
  plan.memory_traffic = moved + update + static_cast<double>(memory.gradients);
}

void PredictTime(const config::Hardware& hardware, Plan& plan) {
  const MeshShape shape = plan.shape;
  StepTime& time = plan.time;
  time.products = plan.flops / hardware.achieved_flops();
  time.memory = plan.memory_traffic / hardware.memory_bandwidth();
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
  const auto beyond = [](double seconds, double hidden) { return std::max(0.0, seconds - hidden); };
  const double microbatch = time.products / static_cast<double>(plan.microbatches);
  time.exposed = time.tensor / 2.0 + beyond(time.tensor / 2.0, time.products / 3.0) +
                 beyond(time.sequence, time.products / 4.0) + beyond(time.replicas, microbatch) +
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
    const StepMeasure measure = MeasureStep(config, precision, device, rank);
    if (measure.memory.total() <= plan.memory.total()) continue;
    plan.rank = rank;
    plan.memory = measure.memory;
    plan.traffic = measure.traffic;
  }
  const auto activations = [&](config::TrainConfig::Recompute recompute) {
    config::Config other = config;
    other.mutable_train()->set_recompute(recompute);
    return MeasureStep(other, precision, device, plan.rank).memory.activations;
  };
  plan.activations_nothing = activations(config::TrainConfig::NOTHING);
  plan.activations_selective = activations(config::TrainConfig::SELECTIVE);
  plan.activations_blocks = activations(config::TrainConfig::BLOCKS);
  CountWork(config, precision, plan);
  PredictTime(hardware, plan);
  return plan;
}

}  // namespace eyrie
