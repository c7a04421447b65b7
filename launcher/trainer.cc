#include "launcher/trainer.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <optional>

#include "launcher/agree.h"
#include "launcher/bucket_options.h"
#include "launcher/config.h"
#include "launcher/evaluate.h"
#include "launcher/schedule.h"
#include "launcher/signals.h"
#include "launcher/tokenizer.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Tokens of its share of a token file that each rank checks before training; every batch is
// checked again when it is drawn.
constexpr int64_t kCheckedTokens = int64_t{1} << 26;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Trainer::Trainer(const config::Config& config, const Mesh& mesh)
    : config_(config),
      mesh_(mesh),
      directory_(config.run().directory()),
      model_(config.model(), mesh.shape().tensor,
             config.train().recompute() == config::TrainConfig::BLOCKS),
      params_(model_.params(), mesh, DType::kF32, /*with_gradients=*/true,
              BucketOptionsOf(config.parallel())),
      optimizer_(config.optimizer(), params_, mesh),
      run_{mesh, params_, arena_} {
  Collectively(mesh.world(), [&] {
    // Checkpoints carry the tokenizer along: it must be there, and fit.
    const std::string& tokenizer = config.data().tokenizer();
    if (!tokenizer.empty()) MakeTokenizer(tokenizer, config.model().vocab_size());
    const auto& train = config.train();
    const auto open = [&](const std::string& prefix, bool shuffle) {
      auto reader =
          std::make_unique<BatchReader>(prefix, train.micro_batch_size(), train.sequence_length(),
                                        config.model().vocab_size(), train.seed(), shuffle);
      reader->CheckPart(mesh.world().rank(), mesh.world().size(), kCheckedTokens);
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
  return {{"", params_.flat_values()},
          {"adamw.m/", optimizer_.m(), /*owned=*/true},
          {"adamw.v/", optimizer_.v(), /*owned=*/true}};
}

void Trainer::Start() {
  const fs::path checkpoints = directory_ / "checkpoints";
  std::optional<fs::path> from;
  Collectively(mesh_.world(), [&] {
    const std::string& resume = config_.checkpoint().resume();
    from = NewestCheckpoint(checkpoints);
    if (resume == "never" && from) {
      ThrowBadInput("checkpoint.resume is \"never\", but ", from->string(), " exists");
    }
    if (resume != "never" && resume != "newest" && !from) from = FindCheckpoint(resume);
  });
  mesh_.world().Barrier();
  Collectively(mesh_.world(), [&] {
    if (!from) {
      params_.Initialise(config_.train().seed());
      return;
    }
    const config::Manifest manifest = ReadManifest(*from);
    RequireSameModel(manifest.config().model(), config_.model(), from->string());
    position_ = LoadCheckpoint(*from, manifest, params_, Groups());
    if (from->parent_path() == checkpoints) saved_step_ = position_.step;
    LOG(INFO) << "resumed from " << from->string() << " at step " << position_.step;
  });
  Collectively(mesh_.world(), [&] {
    if (!mesh_.is_root()) return;
    std::error_code error;
    fs::create_directories(directory_, error);
    std::ofstream out(directory_ / "config.textproto");
    out << ToText(config_);
    if (!out.flush()) ThrowFailure(directory_.string(), ": cannot write config.textproto there");
  });
}

StepMetrics Trainer::Step() {
  const auto start = Clock::now();
  const auto& train = config_.train();
  const int64_t micro = train.micro_batch_size(), data = mesh_.shape().data;
  const int64_t rounds = train.global_batch_size() / (micro * data);
  const int64_t tokens = train.global_batch_size() * train.sequence_length();

  params_.ZeroGrads();
  double loss_sum = 0.0;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t first = position_.samples + (round * data + mesh_.data().rank()) * micro;
    Model::Batch batch = train_->Read(first, micro);
    batch.scale = 1.0 / static_cast<double>(tokens);
    run_.positions = train_->positions(micro);
    ArenaScope scope(arena_);
    Model::Activations saved;
    loss_sum += model_.Forward(run_, batch, nullptr, nullptr, saved).sum;
    if (round + 1 == rounds) params_.ReduceAsReady();
    model_.Backward(run_, batch, saved, nullptr, nullptr, nullptr);
  }
  params_.ReduceGrads();

  StepMetrics metrics;
  metrics.step = position_.step + 1;
  metrics.loss =
      AllReduceValue(mesh_.replicas(), loss_sum, ReduceOp::kSum) / static_cast<double>(tokens);
  metrics.grad_norm = optimizer_.GradNorm();
  if (!std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm)) {
    // Every rank holds the same two numbers.
    throw AgreedError(ExitCode::kFailed,
                      mesh_.is_root()
                          ? StrCat("step ", metrics.step, ": loss ", metrics.loss,
                                   ", gradient norm ", metrics.grad_norm, ": training has diverged")
                          : std::string());
  }
  metrics.learning_rate = LearningRate(config_.optimizer(), train.steps(), metrics.step);
  optimizer_.Step(metrics.step, metrics.learning_rate, metrics.grad_norm);

  position_.step = metrics.step;
  position_.samples += train.global_batch_size();
  position_.tokens += tokens;
  metrics.tokens = position_.tokens;
  metrics.step_seconds = SecondsSince(start);
  metrics.tokens_per_second = static_cast<double>(tokens) / metrics.step_seconds;
  return metrics;
}

double Trainer::Validate() {
  const int64_t sequences =
      std::min(config_.train().validation_sequences(), validation_->sampler().windows());
  return Evaluate(run_, model_, *validation_, sequences, config_.train().micro_batch_size()).loss;
}

void Trainer::Save() {
  if (saved_step_ == position_.step) return;
  const fs::path checkpoints = directory_ / "checkpoints";
  SaveCheckpoint(checkpoints, config_, mesh_, params_, Groups(), position_);
  saved_step_ = position_.step;
  Collectively(mesh_.world(), [&] {
    if (mesh_.is_root()) PruneCheckpoints(checkpoints, config_.checkpoint().keep());
  });
  LOG(INFO) << "saved step " << position_.step;
}

ExitCode Trainer::Run() {
  const auto& train = config_.train();
  std::optional<MetricsWriter> writer;
  std::optional<ProgressLine> progress;
  Collectively(mesh_.world(), [&] {
    if (!mesh_.is_root()) return;
    writer.emplace(directory_, position_.step);
    progress.emplace(config_.run().progress(), train.steps());
  });

  WatchSignals();
  int64_t last = train.steps();
  if (train.stop_after() > 0) last = std::min(last, position_.step + train.stop_after());
  if (position_.step >= last && mesh_.is_root()) {
    std::printf("%s: step %lld of %lld is done already\n", directory_.c_str(),
                static_cast<long long>(position_.step), static_cast<long long>(train.steps()));
  }
  int signal = 0;
  while (position_.step < last && signal == 0) {
    StepMetrics metrics = Step();
    const int64_t step = position_.step;
    if (validation_ && (step % train.validation_interval() == 0 || step == train.steps())) {
      metrics.validation_loss = Validate();
    }
    const bool logs = step % config_.run().log_interval() == 0 || step == last ||
                      metrics.validation_loss.has_value();
    if (mesh_.is_root() && logs) {
      writer->Write(metrics);
      progress->Show(metrics);
    }
    // All ranks leave at the same step, whichever of them the signal reached.
    signal = static_cast<int>(AllReduceValue(mesh_.world(), ReceivedSignal(), ReduceOp::kMax));
    const int64_t interval = config_.checkpoint().interval();
    if (interval > 0 && step % interval == 0) Save();
  }
  Save();
  if (signal == SIGINT) return ExitCode::kInterrupted;
  if (signal == SIGTERM) return ExitCode::kTerminated;
  return ExitCode::kOk;
}

}  // namespace eyrie
