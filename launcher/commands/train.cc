#include <glog/logging.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/options.h"
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/dry_run.h"
#include "launcher/job.h"
#include "launcher/measure.h"
#include "launcher/node_memory.h"
#include "launcher/run_lock.h"
#include "launcher/shared_directory.h"
#include "launcher/trace_file.h"
#include "launcher/trainer.h"
#include "parallel/observed_mesh.h"

namespace eyrie {
namespace {

// How long a run waits for one before it to let go of the directory: the ranks of a killed mpirun
// go on for a while, and a file server keeps the lock of a lost machine for a minute or two.
std::chrono::seconds PatienceOf(const config::Config& config) {
  constexpr int64_t kMost = 120;
  const int64_t timeout = config.run().timeout_seconds();
  return std::chrono::seconds(std::min(timeout, kMost));
}

struct TrainOptions {
  ConfigOptions config;
  bool dry_run = false;
};

// Warnings go to stderr, the rest nowhere.
void StartQuietLogging() {
  google::SetLogDestination(google::INFO, "");
  google::SetLogDestination(google::WARNING, "");
  google::SetLogDestination(google::ERROR, "");
  FLAGS_stderrthreshold = google::WARNING;
  if (!google::IsGoogleLoggingInitialized()) google::InitGoogleLogging("eyrie");
}

// Each rank also logs to its own files in the run directory. Where its folders cannot be, the run
// ends here and not with its first checkpoint.
void StartInDirectory(const config::Config& config, int rank) {
  const std::filesystem::path directory = config.run().directory();
  for (const char* name : {"checkpoints", "logs"}) {
    std::error_code error;
    std::filesystem::create_directories(directory / name, error);
    if (error) {
      ThrowBadInput("run.directory: cannot create ", (directory / name).string(), ": ",
                    error.message());
    }
  }
  StartQuietLogging();
  google::SetLogSymlink(google::INFO, "");  // ranks would fight over it
  google::SetLogDestination(google::INFO,
                            (directory / "logs" / StrCat("rank-", rank, ".")).c_str());
}

// Before any of it is taken: a rank that the system ends for want of memory cannot say why.
void RequireMemory(const config::Config& config, Communicator& world) {
  const Device device = DeviceOf(config);
  const int on_node = world.SplitNode()->size();
  Collectively(world, [&] {
    const int rank = world.rank();
    const MemoryUse taken = MeasureStep(config, PrecisionOf(config), device, rank).memory;
    RequireMemory(taken, device, AvailableMemory(device, on_node), rank);
    if (device != Device::kCpu) RequireHostMemory(taken, NodeMemory() / on_node, rank);
  });
}

ExitCode Train(const TrainOptions& options, Job& job) {
  config::Config config;
  std::optional<RunLock> lock;  // the first rank's
  Collectively(job.world(), [&] {
    config = options.config.Load();
    Resolve(config, job.world().size());
    ValidateForTraining(config);
    if (options.dry_run) {
      StartQuietLogging();
    } else {
      StartInDirectory(config, job.world().rank());
      if (job.world().rank() == 0) lock.emplace(config.run().directory(), PatienceOf(config));
    }
  });
  if (options.dry_run) {
    CheckRunDirectory(config.run().directory(), job.world());
  } else {
    RequireShared(config.run().directory(), job.world());
  }
  const Mesh plain = job.MakeMesh(config);
  RequireMemory(config, job.world());
  std::optional<TraceFile> trace;
  if (!options.dry_run && !config.run().trace().empty()) {
    trace.emplace(config.run().trace(), DeviceOf(config), plain);
  }
  // What goes through the observed mesh is recorded, or delayed.
  std::optional<Mesh> observed;
  if (trace || config.run().network_delay_us() > 0) {
    observed.emplace(ObservedMesh(plain, trace ? &trace->trace() : nullptr,
                                  std::chrono::microseconds(config.run().network_delay_us())));
  }
  const Mesh& mesh = observed ? *observed : plain;
  Trainer trainer(config, mesh, trace ? &*trace : nullptr);
  if (!options.dry_run) return trainer.Run();
  if (mesh.is_root()) std::printf("valid: %s\n", trainer.Summary().c_str());
  return ExitCode::kOk;
}

}  // namespace

void AddTrainCommand(CLI::App& app, ExitCode& code) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand(
      "train",
      "Train a model as a configuration says, or continue a run.\n\n"
      "  mpirun -n 4 eyrie train --config configs/quickstart.textproto --set parallel.tensor=2\n\n"
      "The run directory (run.directory) receives the resolved configuration, metrics.jsonl,\n"
      "TensorBoard event files, logs and checkpoints, of one run at a time. Started again, a\n"
      "run continues from its newest complete checkpoint, on any layout. SIGTERM and SIGINT\n"
      "save, then end with 143 and 130; so does SIGUSR1, with 143, which mpirun passes on at\n"
      "once. Every field of the configuration is described in configs/schema/config.proto.");
  AddConfigOptions(*command, options->config);
  command->add_flag(
      "--dry-run", options->dry_run,
      "check what a run checks before its first step: configuration, layout,\n"
      "memory, token files, tokenizer, the checkpoint it resumes from, run directory;\n"
      "then say in one line what it would do. Leaves no files behind");
  command->callback(
      [options, &code] { code = RunJob([&](Job& job) { return Train(*options, job); }); });
}

}  // namespace eyrie
