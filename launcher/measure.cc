#include "launcher/measure.h"

#include "core/blas.h"
#include "launcher/batches.h"
#include "launcher/bucket_options.h"
#include "launcher/config.h"
#include "launcher/optimizer.h"
#include "layers/chunked.h"
#include "layers/slices.h"

namespace eyrie {

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

  // One step of Trainer::Run. All microbatches but the last are alike.
  StepMeasure measure;
  const int64_t rounds = Rounds(config);
  if (rounds > 1) {
    microbatch(/*completes_step=*/false);
    measure.traffic += (rounds - 1) * sent;
    sent = {};
  }
  const config::DataConfig::Labels labels = config.data().labels();
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
  measure.traffic += sent;
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
  return measure;
}

}  // namespace eyrie
