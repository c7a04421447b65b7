// `eyrie bench step`: optimiser steps of a configuration, on random tokens without files.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>

#include "core/device.h"
#include "core/kernel_times.h"
#include "launcher/agree.h"
#include "launcher/bucket_options.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/options.h"
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/job.h"
#include "launcher/optimizer.h"
#include "layers/slices.h"
#include "parallel/communicator_wrapper.h"

namespace eyrie {
namespace {

struct StepOptions {
  ConfigOptions config;
  int steps = 10;
  bool kernels = false;
  bool json = false;
};

// Hands out operations that are complete, and counts their time as communication.
class TimedCommunicator final : public CommunicatorWrapper {
 public:
  using CommunicatorWrapper::CommunicatorWrapper;

 private:
  Event Started(const Operation&, Event event) override {
    const KernelScope timed("communication");
    event.Wait();
    return Event();
  }
};

// Entries of several steps, by class of kernel.
using KernelSums = std::map<std::string, KernelTimes::Entry>;

// The largest class first; "other" is the host's time between kernels, and comes last.
void ReportKernels(const KernelSums& sums, int steps, const std::string& other, bool json) {
  std::vector<std::pair<std::string, KernelTimes::Entry>> rows(sums.begin(), sums.end());
  std::stable_sort(rows.begin(), rows.end(), [&](const auto& a, const auto& b) {
    return std::pair(b.first == other, a.second.seconds) >
           std::pair(a.first == other, b.second.seconds);
  });
  double seconds = 0;
  for (const auto& row : rows) seconds += row.second.seconds;
  BenchReport report("step", {"kernel", "calls", "ms", "share", "GB/s", "GFLOP/s"});
  report.Set("ms a step", seconds / steps * 1e3);
  for (const auto& [kind, entry] : rows) {
    report.AddRow({kind, entry.work.calls / steps, entry.seconds / steps * 1e3,
                   entry.seconds / seconds, entry.work.bytes / entry.seconds / 1e9,
                   entry.work.products / entry.seconds / 1e9});
  }
  report.Print(json);
}

// FLOPs of one token, forward and backward: 6 for each parameter (a tied table counts once, as the
// head's product, and one that is only looked up in does not), and three times what mixers do
// forward beside their parameters' products. Elementwise recurrences, norms and whatever is
// recomputed do not count.
double FlopsPerToken(const config::ModelConfig& model, int64_t parameters, int64_t length) {
  if (!model.tied_embedding()) parameters -= model.vocab_size() * model.width();
  return 6.0 * static_cast<double>(parameters) +
         3.0 * Model(model, /*tensor_size=*/1).ExtraFlops(0, length) / static_cast<double>(length);
}

ExitCode BenchStep(const StepOptions& options, Job& job) {
  config::Config config;
  Collectively(job.world(), [&] {
    config = options.config.Load();
    Resolve(config, job.world().size());
    // What only files need.
    config.mutable_data()->set_train("random tokens");
    config.mutable_run()->set_directory("none");
    config.mutable_train()->set_validation_interval(0);
    ValidateForTraining(config);
  });
  const Mesh untimed = job.MakeMesh(config);
  const Mesh timed(untimed, [](const char*, Communicator& inner) {
    return std::make_unique<TimedCommunicator>(inner);
  });
  const Mesh& mesh = options.kernels ? timed : untimed;
  const auto& train = config.train();
  const Model model(config.model(), mesh.shape().tensor, RecomputeOf(train));
  ParamStore params(model.params(), mesh, PrecisionOf(config), /*with_gradients=*/true,
                    BucketOptionsOf(config.parallel()), DeviceOf(config));
  Optimizer optimizer(config.optimizer(), params, mesh);
  params.Initialise(train.seed());
  Arena arena(DeviceOf(config));
  Run run{mesh, params, arena};
  Slices slices(mesh, train.batch_slices(), DeviceOf(config), nullptr);

  BenchDevice device(/*repeats=*/3, DeviceOf(config), params.dtype());
  const int64_t micro = train.micro_batch_size();
  const int64_t length = train.sequence_length() / mesh.shape().sequence;
  const int64_t rounds = train.global_batch_size() / (micro * mesh.shape().data);
  const int64_t tokens = train.global_batch_size() * train.sequence_length();
  run.positions = device.Positions(micro, length, mesh.sequence().rank() * length);
  const Tensor loss = device.Zeros(DType::kF64, {2});

  std::vector<double> seconds;
  KernelSums sums;
  const std::string other = "other";
  for (int step = 0; step <= options.steps; ++step) {
    // Drawn anew, before the clock starts.
    std::vector<Model::Batch> batches;
    const BenchDevice::Mark mark = device.mark();
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t vocab = config.model().vocab_size();
      batches.push_back({.tokens = device.Tokens({micro, length}, vocab),
                         .labels = device.Tokens({micro, length}, vocab),
                         .scale = 1.0 / static_cast<double>(tokens),
                         .loss = loss});
    }
    mesh.world().Barrier();
    const ProfilerRange range(StrCat("step ", step));
    const auto run_step = [&] {
      params.ZeroGrads();
      for (int64_t round = 0; round < rounds; ++round) {
        slices.ForwardBackward(model, run, batches[static_cast<size_t>(round)],
                               train.chunk_length(), /*completes_step=*/round + 1 == rounds);
      }
      params.ReduceGrads();
      optimizer.Step(step + 1, config.optimizer().learning_rate(), optimizer.GradNorm());
    };
    if (options.kernels) {
      KernelTimes times(DeviceOf(config));
      {
        const KernelScope rest(other.c_str());
        run_step();
      }
      for (const auto& [kind, entry] : times.entries()) {
        if (step == 0) continue;
        sums[kind].work.Add(entry.work);
        sums[kind].seconds += entry.seconds;
      }
    } else {
      const double taken = device.SecondsOf(run_step);
      if (step > 0) seconds.push_back(AllReduceValue(mesh.world(), taken, ReduceOp::kMax));
    }
    device.Release(mark);
  }
  params.GatherDone();
  if (options.kernels) {
    if (mesh.is_root()) ReportKernels(sums, options.steps, other, options.json);
    return ExitCode::kOk;
  }

  const double median = Median(seconds);
  const int64_t parameters = params.table().TotalElements();
  const double flops = FlopsPerToken(config.model(), parameters, train.sequence_length());
  // All ranks multiply at the same time, as in a step.
  mesh.world().Barrier();
  const double gemm = AllReduceValue(mesh.world(), device.GemmRate(), ReduceOp::kSum);
  if (!mesh.is_root()) return ExitCode::kOk;
  BenchReport report("step", {"parameters", "ranks", "tokens", "ms", "tokens/s", "GFLOP/s", "MFU"});
  report.Set("gemm GFLOP/s", gemm / 1e9);
  report.Set("FLOPs a token", flops);
  if (DeviceOf(config) == Device::kCuda) {
    report.Set("device", cuda::DeviceName());
    report.Set("GPU memory in use GB",
               static_cast<double>(cuda::TotalMemory() - cuda::FreeMemory()) / 1e9);
  }
  const double rate = static_cast<double>(tokens) / median;
  report.AddRow({parameters, mesh.world().size(), tokens, median * 1e3, rate, rate * flops / 1e9,
                 rate * flops / gemm});
  report.Print(options.json);
  return ExitCode::kOk;
}

}  // namespace

void AddBenchStep(CLI::App& bench, ExitCode& code) {
  auto options = std::make_shared<StepOptions>();
  CLI::App* command = bench.add_subcommand(
      "step",
      "Time training steps of a configuration, alone or under mpirun.\n\n"
      "Runs on random tokens, with no files: fields of data, checkpoint and run.directory are\n"
      "ignored. MFU is the share of the measured rate of matrix products, over all ranks, that is\n"
      "6 FLOPs a parameter and token, 12 a token, channel of attention and key seen, and 12 a "
      "token\n"
      "and element of a matrix memory (mlstm, lightning_attention); what recomputation adds does\n"
      "not count. The first step is not timed.");
  AddConfigOptions(*command, options->config);
  command->add_option("--steps", options->steps, "timed steps (default: 10)")
      ->check(PositiveCount());
  command->add_flag(
      "--kernels", options->kernels,
      "print instead what a step of the root rank spends on each class of kernel: a\n"
      "folder of kernels/, gemm, copies, tensor_math (core/tensor_math.h),\n"
      "communication, or other, which is the host between them; each has the device\n"
      "to itself and is waited for, so that nothing overlaps. GB/s and GFLOP/s are of\n"
      "the bytes and products that eyrie plan counts");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback(
      [options, &code] { code = RunJob([&](Job& job) { return BenchStep(*options, job); }); });
}

}  // namespace eyrie
