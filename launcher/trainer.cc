#include "launcher/trainer.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <optional>

#include "core/blas.h"
#include "launcher/agree.h"
#include "launcher/bucket_options.h"
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/evaluate.h"
#include "launcher/non_finite.h"
#include "launcher/schedule.h"
#include "launcher/signals.h"
#include "launcher/tensorboard.h"
#include "launcher/tokenizer.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Trainer::Trainer(const config::Config& config, const Mesh& mesh, TraceFile* trace,
                 CheckpointWriter::ShardSink sink)
    : config_(config),
      mesh_(mesh),
      directory_(config.run().directory()),
      model_(config.model(), mesh.shape().tensor, RecomputeOf(config.train())),
      params_(model_.params(), mesh, PrecisionOf(config), /*with_gradients=*/true,
              BucketOptionsOf(config.parallel()), DeviceOf(config)),
      optimizer_(config.optimizer(), params_, mesh),
      arena_(DeviceOf(config)),
      loss_(DType::kF64, {2}, DeviceOf(config)),
      run_{mesh, params_, arena_},
      trace_(trace),
      slices_(mesh, config.train().batch_slices(), arena_.device(),
              trace == nullptr ? nullptr : &trace->trace()),
      writer_(directory_ / "checkpoints", config, mesh, params_, std::move(sink)) {
  if (trace != nullptr) run_.trace = &trace->trace();
  Collectively(mesh.world(), [&] {
    // Checkpoints carry the tokenizer along: it must be there, and fit.
    const std::string& tokenizer = config.data().tokenizer();
    if (!tokenizer.empty()) MakeTokenizer(tokenizer, config.model().vocab_size());
    const auto& train = config.train();
    const auto open = [&](const std::string& prefix, bool shuffle) {
      auto reader = std::make_unique<BatchReader>(
          BatchReader::Options{.prefix = prefix,
                               .max_batch = train.micro_batch_size(),
                               .length = train.sequence_length(),
                               .vocab_size = config.model().vocab_size(),
                               .chunk = mesh.sequence().rank(),
                               .chunks = mesh.sequence().size(),
                               .stripe = train.chunk_length(),
                               .packing = config.data().packing(),
                               .labels = config.data().labels(),
                               .seed = train.seed(),
                               .shuffle = shuffle,
                               .device = DeviceOf(config)});
      reader->CheckPart(mesh.world().rank(), mesh.world().size());
      return reader;
    };
    train_ = open(config.data().train(), /*shuffle=*/true);
    if (train.validation_interval() > 0) {
      validation_ = open(config.data().validation(), /*shuffle=*/false);
    }
  });
  Start();
}

std::vector<NamedFlat> Trainer::Groups() const {
  const Tensor masters = params_.masters();
  return {masters.defined() ? NamedFlat{"", masters, /*owned=*/true}
                            : NamedFlat{"", params_.flat_values()},
          {"adamw.m/", optimizer_.m(), /*owned=*/true},
          {"adamw.v/", optimizer_.v(), /*owned=*/true}};
}

void Trainer::Start() {
  const fs::path checkpoints = directory_ / "checkpoints";
  const auto found = FindOnRoot(mesh_.world(), [&] {
    const std::string& resume = config_.checkpoint().resume();
    std::optional<fs::path> from = NewestCheckpoint(checkpoints);
    if (resume == "never" && from) {
      ThrowBadInput("checkpoint.resume is \"never\", but ", from->string(), " exists");
    }
    if (resume != "never" && resume != "newest" && !from) from = FindCheckpoint(resume);
    return from;
  });
  Collectively(mesh_.world(), [&] {
    if (!found) {
      params_.Initialise(config_.train().seed());
      return;
    }
    const auto& [from, manifest] = *found;
    RequireSameModel(manifest.config().model(), config_.model(), from.string());
    position_ = LoadCheckpoint(from, manifest, params_, Groups());
    source_ = from.string();
    if (from.parent_path() != checkpoints) return;
    saved_step_ = position_.step;
    if (mesh_.is_root()) WarnOfOtherData(manifest.config());
  });
  if (found && params_.masters().defined()) params_.PublishMasters();
}

void Trainer::WarnOfOtherData(const config::Config& before) const {
  const auto compare = [&](const char* field, const auto& was, const auto& is) {
    if (was == is || position_.samples == 0) return;
    LOG(WARNING) << source_ << ": " << field << " was " << was << ", and is " << is
                 << ": the sequences after the first " << position_.samples
                 << " are not those that would have followed";
  };
  compare("train.seed", before.train().seed(), config_.train().seed());
  compare("train.sequence_length", before.train().sequence_length(),
          config_.train().sequence_length());
  compare("data.train", before.data().train(), config_.data().train());
}

std::string Trainer::Summary() const {
  const MeshShape shape = mesh_.shape();
  const auto& train = config_.train();
  const auto count = [](int64_t n, const char* noun) {
    return StrCat(n, " ", noun, n == 1 ? "" : "s");
  };
  const auto data = [&](const std::string& prefix, const BatchReader& reader) {
    return StrCat("; ", prefix, ": ", count(reader.sampler().windows(), "sequence"), " of ",
                  count(train.sequence_length(), "token"));
  };
  return StrCat(
      count(params_.table().TotalElements(), "parameter"), " on ", count(shape.ranks(), "rank"),
      " (data ", shape.data, " x sequence ", shape.sequence, " x tensor ", shape.tensor, "); ",
      count(train.global_batch_size() * train.sequence_length(), "token"), " a step; ",
      position_.step >= train.steps() ? StrCat("all ", count(train.steps(), "step"), " done, in ")
                                      : StrCat("steps ", position_.step + 1, " to ", LastStep(),
                                               " of ", train.steps(), ", from "),
      source_, data(config_.data().train(), *train_),
      validation_ ? data(config_.data().validation(), *validation_) : "");
}

MemoryUse Trainer::memory() const {
  const auto bytes = [](size_t count) { return static_cast<int64_t>(count); };
  const auto reader = [&](const auto& data) { return data ? bytes(data->buffer_bytes()) : 0; };
  return {.parameters = bytes(params_.value_bytes()),
          .gradients = bytes(params_.gradient_bytes()),
          .masters = bytes(params_.master_bytes()),
          .moments = bytes(optimizer_.moment_bytes()),
          .activations = bytes(arena_.peak_bytes() + slices_.peak_bytes()),
          .buffers = bytes(optimizer_.workspace_bytes() + GemmWorkspaceBytes(params_.device())) +
                     reader(train_) + reader(validation_),
          .copy = bytes(writer_.copy_bytes())};
}

int64_t Trainer::LastStep() const {
  const auto& train = config_.train();
  if (train.stop_after() == 0) return train.steps();
  return position_.step + std::min(train.stop_after(), train.steps() - position_.step);
}

void Trainer::WriteConfig() const {
  std::error_code error;
  fs::create_directories(directory_, error);
  std::ofstream out(directory_ / "config.textproto");
  out << ToText(config_);
  if (!out.flush()) ThrowFailure(directory_.string(), ": cannot write config.textproto there");
}

int64_t Trainer::FirstSample(int64_t round) const {
  return position_.samples +
         (round * mesh_.shape().data + mesh_.data().rank()) * config_.train().micro_batch_size();
}

double Trainer::CountLabels() {
  const auto& train = config_.train();
  if (config_.data().labels() == config::DataConfig::NEXT_TOKEN) {
    return static_cast<double>(train.global_batch_size() * train.sequence_length());
  }
  int64_t own = 0;
  for (int64_t round = 0; round < Rounds(config_); ++round) {
    own += train_->CountLabels(FirstSample(round), train.micro_batch_size());
  }
  const double all = AllReduceValue(mesh_.replicas(), static_cast<double>(own), ReduceOp::kSum);
  if (all > 0) return all;
  throw AgreedError(ExitCode::kBadInput,
                    mesh_.is_root() ? StrCat(train_->prefix(), ".labels.bin: step ",
                                             position_.step + 1, " has no label that counts")
                                    : "");
}

void Trainer::RunMicrobatch(int64_t first_sample, double scale, bool completes_step) {
  const auto& train = config_.train();
  const int64_t micro = train.micro_batch_size();
  Model::Batch batch = train_->Read(first_sample, micro);
  batch.scale = scale;
  batch.loss = loss_.tensor;
  run_.positions = train_->positions(micro);
  slices_.ForwardBackward(model_, run_, batch, train.chunk_length(), completes_step);
}

StepMetrics Trainer::Step() {
  const ProfilerRange range(StrCat("step ", position_.step + 1));
  const auto start = Clock::now();
  const auto& train = config_.train();
  const int64_t tokens = train.global_batch_size() * train.sequence_length();
  const double labels = CountLabels();

  params_.ZeroGrads();
  FillZero(loss_.tensor);
  for (int64_t round = 0; round < Rounds(config_); ++round) {
    RunMicrobatch(FirstSample(round), 1.0 / labels,
                  /*completes_step=*/round + 1 == Rounds(config_));
  }
  params_.ReduceGrads();

  StepMetrics metrics;
  metrics.step = position_.step + 1;
  metrics.loss =
      AllReduceValue(mesh_.replicas(), ReadLoss(loss_.tensor).sum, ReduceOp::kSum) / labels;
  metrics.grad_norm = optimizer_.GradNorm();
  if (!std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm))
    StopDiverged(metrics, 1.0 / labels);
  metrics.learning_rate = LearningRate(config_.optimizer(), train.steps(), metrics.step);
  {
    const Trace::Scope computing(run_.trace, Trace::Kind::kCompute, "optimizer");
    optimizer_.Step(metrics.step, metrics.learning_rate, metrics.grad_norm);
  }

  position_.step = metrics.step;
  position_.samples += train.global_batch_size();
  position_.tokens += tokens;
  metrics.tokens = position_.tokens;
  metrics.step_seconds = SecondsSince(start);
  metrics.tokens_per_second = static_cast<double>(tokens) / metrics.step_seconds;
  return metrics;
}

void Trainer::StopDiverged(const StepMetrics& metrics, double scale) {
  // The parameters are still those that the step began with.
  NonFiniteSearch search(run_);
  params_.ZeroGrads();
  FillZero(loss_.tensor);
  for (int64_t round = 0; round < Rounds(config_); ++round) {
    search.Begin(FirstSample(round), config_.train().micro_batch_size());
    RunMicrobatch(FirstSample(round), scale, /*completes_step=*/false);
    search.End();
  }
  // Printing would tell apart the signs of NaNs.
  const auto text = [](double value) { return std::isnan(value) ? "nan" : StrCat(value); };
  std::string found = search.Report();
  if (!found.empty()) {
    found = StrCat("step ", metrics.step, ": loss ", text(metrics.loss), ", gradient norm ",
                   text(metrics.grad_norm), ": training has diverged; first not finite: ", found);
  }
  throw AgreedError(ExitCode::kFailed, found);
}

void Trainer::Validate(StepMetrics& metrics) {
  const auto& train = config_.train();
  const int64_t sequences =
      std::min(train.validation_sequences(), validation_->sampler().windows());
  const Evaluation result = Evaluate(run_, model_, *validation_, sequences,
                                     train.micro_batch_size(), train.chunk_length());
  if (!std::isfinite(result.loss)) {
    throw AgreedError(ExitCode::kFailed,
                      mesh_.is_root() ? StrCat("step ", metrics.step,
                                               ": the validation loss is not finite: training has "
                                               "diverged")
                                      : "");
  }
  metrics.validation_loss = result.loss;
  metrics.validation_accuracy = result.accuracy;
}

void Trainer::Save() {
  if (saved_step_ == position_.step) return;
  FinishSave();
  writer_.Begin(Groups(), position_, config_.checkpoint().asynchronous());
  saved_step_ = position_.step;
  if (!config_.checkpoint().asynchronous()) FinishSave();
}

void Trainer::FinishSave() {
  if (!writer_.under_way()) return;
  writer_.Finish();
  Collectively(mesh_.world(), [&] {
    if (!mesh_.is_root()) return;
    try {
      PruneCheckpoints(directory_ / "checkpoints", config_.checkpoint().keep());
    } catch (const Error& error) {  // a reader may hold it; nothing is lost
      LOG(WARNING) << error.what();
    }
  });
  LOG(INFO) << "saved step " << saved_step_;
}

int Trainer::Agree() {
  double news[] = {static_cast<double>(ReceivedSignal()), static_cast<double>(writer_.progress())};
  const Tensor view{news, DType::kF64, Device::kCpu, {2}};
  mesh_.world().AllReduce(view, ReduceOp::kMax).Wait();
  if (news[1] != static_cast<double>(CheckpointWriter::Progress::kWriting)) FinishSave();
  return static_cast<int>(news[0]);
}

ExitCode Trainer::Run() {
  try {
    return RunSteps();
  } catch (const AgreedError&) {
    params_.GatherDone();  // no message may be under way when its memory goes
    FinishSave();          // of a step before
    throw;
  }
}

ExitCode Trainer::RunSteps() {
  const auto& train = config_.train();
  const int64_t last = LastStep();
  const int64_t last_traced =
      position_.step + std::min(config_.run().trace_steps(), last - position_.step);
  LOG(INFO) << Summary();
  std::optional<MetricsWriter> writer;
  std::optional<TensorboardWriter> events;
  std::optional<ProgressLine> progress;
  Collectively(mesh_.world(), [&] {
    if (!mesh_.is_root()) return;
    WriteConfig();
    writer.emplace(directory_, position_.step);
    if (config_.run().tensorboard() && position_.step < last) {
      events.emplace(directory_, position_.step);
    }
    progress.emplace(config_.run().progress(), train.steps());
  });

  WatchSignals();
  if (position_.step >= last && mesh_.is_root()) {
    std::printf("%s: step %lld of %lld is done already\n", directory_.c_str(),
                static_cast<long long>(position_.step), static_cast<long long>(train.steps()));
  }
  int signal = 0;
  if (trace_ != nullptr) trace_->Start(mesh_);
  while (position_.step < last && signal == 0) {
    StepMetrics metrics = Step();
    const int64_t step = position_.step;
    if (trace_ != nullptr && step == last_traced) trace_->Write(mesh_);
    if (validation_ && (step % train.validation_interval() == 0 || step == train.steps())) {
      Validate(metrics);
    }
    const bool logs = step % config_.run().log_interval() == 0 || step == last ||
                      metrics.validation_loss.has_value();
    if (mesh_.is_root() && logs) {
      writer->Write(metrics);
      if (events) events->Write(metrics);
    }
    if (mesh_.is_root() && (logs || progress->live())) progress->Show(metrics);
    // All ranks leave at the same step, whichever of them the signal reached.
    signal = Agree();
    const int64_t interval = config_.checkpoint().interval();
    if (interval > 0 && step % interval == 0) Save();
  }
  if (trace_ != nullptr) trace_->Write(mesh_);
  Save();
  FinishSave();
  const MemoryUse used = memory();
  LOG(INFO) << "memory: parameters " << used.parameters << ", gradients " << used.gradients
            << ", masters " << used.masters << ", moments " << used.moments << ", activations "
            << used.activations << ", buffers " << used.buffers << ", copy " << used.copy
            << " bytes";
  if (signal != 0 && mesh_.is_root()) {
    std::printf("%s: stopped by a signal, saved step %lld of %lld\n", directory_.c_str(),
                static_cast<long long>(position_.step), static_cast<long long>(train.steps()));
  }
  if (signal == SIGINT) return ExitCode::kInterrupted;
  if (signal == SIGTERM) return ExitCode::kTerminated;
  return ExitCode::kOk;
}

}  // namespace eyrie
