#include "launcher/measure.h"

#include <cstdio>

#include "core/blas.h"
#include "launcher/batches.h"
#include "launcher/bucket_options.h"
#include "launcher/config.h"
#include "launcher/optimizer.h"
#include "launcher/shard_files.h"
#include "layers/chunked.h"
#include "layers/slices.h"

namespace eyrie {

std::string FormatBytes(double bytes) {
  int power = 0;
  for (; bytes >= 1024.0 && power < 4; ++power) bytes /= 1024.0;
  char text[32];
  std::snprintf(text, sizeof text, power == 0 ? "%.0f " : "%.2f ", bytes);
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  return StrCat(text, kUnits[power]);
}

void RequireMemory(const MemoryUse& taken, Device device, double available, int rank) {
  const int64_t total = taken.total(device);
  if (static_cast<double>(total) <= available) return;
  if (device == Device::kCpu && static_cast<double>(total - taken.copy) <= available) {
    RequireHostMemory(taken, available - static_cast<double>(total - taken.copy), rank);
  }
  const int64_t model = taken.parameters + taken.gradients + taken.masters + taken.moments;
  const bool batch = taken.activations > model;
  ThrowBadInput(batch ? "train.micro_batch_size" : "parallel", ": rank ", rank, " would take ",
                FormatBytes(total), " of memory, ", FormatBytes(taken.activations),
                " of them for activations and ", FormatBytes(model),
                " for parameters, gradients and the optimiser, but has ", FormatBytes(available),
                batch ? "; see also train.recompute, train.chunk_length and parallel"
                      : "; see also parallel.tensor, parallel.zero and optimizer.moments");
}

void RequireHostMemory(const MemoryUse& taken, double available, int rank) {
  if (static_cast<double>(taken.copy) <= available) return;
  ThrowBadInput("checkpoint.asynchronous: rank ", rank, " would take ", FormatBytes(taken.copy),
                " of the host's memory for a copy of what it saves, but has ",
                FormatBytes(available), "; false waits for the disk and needs none");
}

StepMeasure MeasureStep(const config::Config& config, const Precision& precision, Device device,
                        int rank) {
  const Device meta = MetaOf(device);
  const auto& train = config.train();
  const MeshShape shape = MeshShapeOf(config.parallel());
  MeshTraffic sent;
  const Mesh mesh(shape, CountingGroups(AbsentGroups(shape, rank), sent));
  const Model model(config.model(), shape.tensor, RecomputeOf(train));
  ParamStore params(model.params(), mesh, precision, /*with_gradients=*/true,
                    BucketOptionsOf(config.parallel()), meta);
  Optimizer optimizer(config.optimizer(), params, mesh);
  Arena arena(meta);
  Run run{mesh, params, arena};
  Slices slices(mesh, train.batch_slices(), meta, nullptr);

  const int64_t micro = train.micro_batch_size();
  const OwnedTensor integers(DType::kI32, {micro, train.sequence_length() / shape.sequence}, meta);
  run.positions = integers.tensor;
  const OwnedTensor loss(DType::kF64, {2}, meta);
  const Model::Batch batch{
      .tokens = integers.tensor, .labels = integers.tensor, .loss = loss.tensor};
  const auto microbatch = [&](bool completes_step) {
    slices.ForwardBackward(model, run, batch, train.chunk_length(), completes_step);
  };

  const config::DataConfig::Labels labels = config.data().labels();
  StepMeasure measure;
  const auto measured = [&](int64_t times, const auto& part) {
    sent = {};
    const KernelTimes kernels(meta);
    part();
    measure.traffic += times * sent;
    for (const auto& [kind, entry] : kernels.entries()) {
      measure.kernels[kind].Add(entry.work, times);
    }
  };
  // One step of Trainer::Run. The first microbatch finds no gradients that it would add to, and the
  // last one completes them; those between are alike.
  const int64_t rounds = Rounds(config);
  params.ZeroGrads();
  if (rounds > 1) measured(1, [&] { microbatch(/*completes_step=*/false); });
  if (rounds > 2) measured(rounds - 2, [&] { microbatch(/*completes_step=*/false); });
  measured(1, [&] {
    if (labels == config::DataConfig::GIVEN) {
      AllReduceValue(mesh.replicas(), 0.0, ReduceOp::kSum);  // how many count
    }
    microbatch(/*completes_step=*/true);
    params.ReduceGrads();
    AllReduceValue(mesh.replicas(), 0.0, ReduceOp::kSum);  // the loss
    optimizer.Step(1, /*learning_rate=*/0.0, optimizer.GradNorm());
    params.GatherDone();
    double news[2];  // whether a signal came, and how a save is doing
    mesh.world().AllReduce(Tensor{news, DType::kF64, Device::kCpu, {2}}, ReduceOp::kMax).Wait();
  });
  if (train.validation_interval() > 0) {
    ArenaScope scope(arena);
    Evaluate(model, run, batch, train.chunk_length());
  }

  const auto bytes = [](size_t count) { return static_cast<int64_t>(count); };
  measure.memory = {.parameters = bytes(params.value_bytes()),
                    .gradients = bytes(params.gradient_bytes()),
                    .masters = bytes(params.master_bytes()),
                    .moments = bytes(optimizer.moment_bytes()),
                    .activations = bytes(arena.peak_bytes() + slices.peak_bytes()),
                    .buffers = bytes(optimizer.workspace_bytes() + GemmWorkspaceBytes(device)) +
                               bytes(BatchReader::BufferBytes(micro, train.sequence_length(),
                                                              shape.sequence, labels)) *
                                   (train.validation_interval() > 0 ? 2 : 1)};
  if (config.checkpoint().asynchronous()) {
    const DType moments = precision.moments;
    measure.memory.copy = LargestShard(model.params(),
                                       {{"", precision.masters, precision.has_masters()},
                                        {"", moments, true},
                                        {"", moments, true}},
                                       shape, params.plan());
  }
  return measure;
}

}  // namespace eyrie
