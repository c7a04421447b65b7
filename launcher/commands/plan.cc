#include "launcher/plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/text.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/options.h"
#include "launcher/config.h"
#include "launcher/device.h"
#include "launcher/hardware.h"
#include "launcher/job.h"

namespace eyrie {
namespace {

using nlohmann::ordered_json;

struct PlanOptions {
  ConfigOptions config;
  std::string hardware;
  int ranks = 0;  // 0: as parallel says
  bool json = false;
};

void RequireSameDevice(const config::Config& config, const config::Hardware& hardware) {
  const bool gpu = hardware.device() == config::Hardware::GPU;
  const auto device = config.run().device();
  if (device == config::RunConfig::auto_ ||
      device == (gpu ? config::RunConfig::cuda : config::RunConfig::cpu)) {
    return;
  }
  ThrowBadInput("run.device is ", gpu ? "cpu" : "cuda", ", but the hardware (", hardware.name(),
                ") is a ", gpu ? "GPU" : "CPU", "; see --hardware");
}

config::Config LoadForPlan(const PlanOptions& options, const config::Hardware& hardware) {
  config::Config config = options.config.Load();
  RequireSameDevice(config, hardware);
  config.mutable_run()->clear_device();  // this machine need not have it
  const auto& parallel = config.parallel();
  int64_t ranks = options.ranks;
  if (ranks == 0) {
    if (parallel.data() == 0)
      ThrowBadInput(
          "--ranks is required where parallel.data is 0, to say how many ranks there are");
    ranks = int64_t{parallel.data()} * parallel.sequence() * parallel.tensor();
  }
  if (ranks > std::numeric_limits<int>::max())
    ThrowBadInput("parallel: ", ranks, " are too many ranks");
  Resolve(config, static_cast<int>(ranks), DeviceOf(hardware));
  ConfigErrors errors;
  ValidateStep(config, errors);
  ThrowIfAny(errors);
  return config;
}

ordered_json ToJson(const Plan& plan, const config::Hardware& hardware) {
  const auto traffic = [](const Traffic& sent) {
    return ordered_json{{"bytes", sent.bytes}, {"messages", sent.messages}};
  };
  const MemoryUse& memory = plan.memory;
  ordered_json kernels;
  for (const auto& [kind, work] : plan.kernels) {
    kernels[kind] = {{"calls", work.calls},       {"bytes", work.bytes},
                     {"products", work.products}, {"scans", work.scans},
                     {"turns", work.turns},       {"seconds", plan.time.by_kernel.at(kind)}};
  }
  return {{"hardware", hardware.name()},
          {"layout",
           {{"ranks", plan.shape.ranks()},
            {"data", plan.shape.data},
            {"sequence", plan.shape.sequence},
            {"tensor", plan.shape.tensor}}},
          {"parameters", plan.parameters},
          {"local_parameters", plan.local_parameters},
          {"microbatches", plan.microbatches},
          {"tokens", plan.tokens},
          {"rank", plan.rank},
          {"memory",
           {{"parameters", memory.parameters},
            {"gradients", memory.gradients},
            {"masters", memory.masters},
            {"moments", memory.moments},
            {"activations", memory.activations},
            {"buffers", memory.buffers},
            {"reserved", memory.reserved},
            {"copy", memory.copy},
            {"total", memory.total(DeviceOf(hardware))}}},
          {"activations",
           {{"NOTHING", plan.activations_nothing},
            {"SELECTIVE", plan.activations_selective},
            {"BLOCKS", plan.activations_blocks}}},
          {"sent",
           {{"tensor", traffic(plan.traffic.tensor)},
            {"sequence", traffic(plan.traffic.sequence)},
            {"data", traffic(plan.traffic.data)},
            {"replicas", traffic(plan.traffic.replicas)},
            {"world", traffic(plan.traffic.world)}}},
          {"kernels", kernels},
          {"flops", plan.flops},
          {"model_flops", plan.model_flops},
          {"memory_traffic", plan.memory_traffic},
          {"step_seconds",
           {{"kernels", plan.time.kernels},
            {"tensor", plan.time.tensor},
            {"sequence", plan.time.sequence},
            {"replicas", plan.time.replicas},
            {"world", plan.time.world},
            {"exposed", plan.time.exposed},
            {"total", plan.time.total()}}},
          {"tokens_per_second", plan.tokens_per_second},
          {"model_flops_utilisation", plan.utilisation}};
}

template <class... Values>
std::string Format(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string Seconds(double seconds) {
  if (seconds < 1e-3) return Format("%.1f us", seconds * 1e6);
  if (seconds < 1.0) return Format("%.2f ms", seconds * 1e3);
  return Format("%.3f s", seconds);
}

void Print(const Plan& plan, const config::Config& config, const config::Hardware& hardware) {
  const auto& train = config.train();
  const Precision precision = PrecisionOf(config, DeviceOf(hardware));
  const auto row = [](const char* name, const std::string& value, const std::string& remark) {
    std::printf("  %-16s%14s%s%s\n", name, value.c_str(), remark.empty() ? "" : "  ",
                remark.c_str());
  };

  std::printf("model     %s parameters, %s on a rank\n", WithCommas(plan.parameters).c_str(),
              WithCommas(plan.local_parameters).c_str());
  std::printf("layout    %s %s: data %d x sequence %d x tensor %d\n",
              WithCommas(plan.shape.ranks()).c_str(), plan.shape.ranks() == 1 ? "rank" : "ranks",
              plan.shape.data, plan.shape.sequence, plan.shape.tensor);
  std::printf("step      %s tokens; a rank runs %s x %s sequences of %s tokens\n",
              WithCommas(plan.tokens).c_str(), WithCommas(plan.microbatches).c_str(),
              WithCommas(train.micro_batch_size()).c_str(),
              WithCommas(train.sequence_length() / plan.shape.sequence).c_str());
  std::printf("hardware  %s\n", hardware.name().c_str());

  std::string others;
  for (const auto& [mode, taken] :
       {std::pair{config::TrainConfig::NOTHING, plan.activations_nothing},
        {config::TrainConfig::SELECTIVE, plan.activations_selective},
        {config::TrainConfig::BLOCKS, plan.activations_blocks}}) {
    if (mode == train.recompute()) continue;
    others += StrCat(others.empty() ? "; " : ", ", config::TrainConfig::Recompute_Name(mode),
                     others.empty() ? " would take " : " ", FormatBytes(taken));
  }
  const auto type = [](DType dtype) { return std::string(Name(dtype)); };
  std::printf("\nmemory of rank %d%s\n", plan.rank,
              plan.shape.sequence > 1 ? ", which needs the most" : "");
  row("parameters", FormatBytes(plan.memory.parameters), type(precision.values));
  row("gradients", FormatBytes(plan.memory.gradients), type(precision.gradients));
  row("masters", FormatBytes(plan.memory.masters),
      precision.has_masters() ? type(precision.masters) : "the parameters are their own");
  row("moments", FormatBytes(plan.memory.moments), type(precision.moments));
  row("activations", FormatBytes(plan.memory.activations),
      StrCat(Name(precision.activations), ", train.recompute: ",
             config::TrainConfig::Recompute_Name(train.recompute()), others));
  row("buffers", FormatBytes(plan.memory.buffers), "");
  if (plan.memory.reserved > 0)
    row("reserved", FormatBytes(plan.memory.reserved), "by driver and libraries");
  const Device device = DeviceOf(hardware);
  if (plan.memory.copy > 0) {
    row("copy", FormatBytes(plan.memory.copy),
        StrCat("that checkpoints are written from",
               device == Device::kCpu ? "" : ", in the host's memory, not in the total"));
  }
  const int64_t total = plan.memory.total(device);
  const bool fits = static_cast<double>(total) <= hardware.memory_bytes();
  row("total", FormatBytes(total),
      StrCat(fits ? "fits into " : "DOES NOT FIT into ", FormatBytes(hardware.memory_bytes())));

  std::printf("\nsent by it in a step\n");
  const auto sent = [&](const char* axis, int ranks, const Traffic& traffic, double seconds) {
    if (ranks == 1) return;
    row(axis, FormatBytes(traffic.bytes),
        Format("%s messages over %d ranks, %s", WithCommas(traffic.messages).c_str(), ranks,
               Seconds(seconds).c_str()));
  };
  if (plan.shape.ranks() == 1) std::printf("  nothing\n");
  sent("tensor", plan.shape.tensor, plan.traffic.tensor, plan.time.tensor);
  sent("sequence", plan.shape.sequence, plan.traffic.sequence, plan.time.sequence);
  sent("data, sequence", plan.shape.data * plan.shape.sequence, plan.traffic.replicas,
       plan.time.replicas);
  sent("world", plan.shape.ranks(), plan.traffic.world, plan.time.world);

  std::printf("\npredicted step\n");
  std::vector<std::pair<double, std::string>> kernels;
  for (const auto& [kind, seconds] : plan.time.by_kernel) kernels.emplace_back(seconds, kind);
  std::sort(kernels.rbegin(), kernels.rend());
  const double least = 0.01 * plan.time.total();  // what is shorter has no line of its own
  double rest = 0.0;
  for (const auto& [seconds, kind] : kernels) {
    const KernelWork& work = plan.kernels.at(kind);
    if (seconds < least) {
      rest += seconds;
      continue;
    }
    row(kind.c_str(), Seconds(seconds),
        StrCat(WithCommas(work.calls), " calls, ", FormatBytes(work.bytes),
               work.products > 0 ? Format(", %.4g TFLOP", work.products / 1e12) : ""));
  }
  if (rest > 0) row("other kernels", Seconds(rest), "");
  row("communication", Seconds(plan.time.exposed),
      "what no kernel hides, and takes from those that do");
  row("step", Seconds(plan.time.total()),
      StrCat(WithCommas(static_cast<int64_t>(plan.tokens_per_second)), " tokens/s, ",
             Format("%.1f %% of the peak by %.4g TFLOP of the model's a rank",
                    100.0 * plan.utilisation, plan.model_flops / 1e12)));
}

ExitCode RunPlan(const PlanOptions& options) {
  const config::Hardware hardware = LoadHardware(options.hardware);
  const config::Config config = LoadForPlan(options, hardware);
  const Plan plan = MakePlan(config, hardware);
  if (options.json) {
    std::printf("%s\n", ToJson(plan, hardware).dump(2).c_str());
  } else {
    Print(plan, config, hardware);
  }
  RequireMemory(plan.memory, DeviceOf(hardware), hardware.memory_bytes(), plan.rank);
  return ExitCode::kOk;
}

}  // namespace

void AddPlanCommand(CLI::App& app, ExitCode& code) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "Predict, without running it, what a training run takes: parameters, memory of a rank by\n"
      "kind, bytes sent in a step on each axis, seconds of a step.\n\n"
      "  eyrie plan --config configs/griffin/14b.textproto --ranks 4096 --set parallel.tensor=8\n\n"
      "Runs alone. Memory, bytes and what kernels have to do come from a step of the real program\n"
      "on tensors without memory; the time from the hardware's numbers, which by default are "
      "those\n"
      "of H100 nodes. Where a rank needs more memory than there is, ends with 2 after the plan.");
  AddConfigOptions(*command, options->config);
  command->add_option("--ranks", options->ranks, "ranks of the job, where parallel.data is 0")
      ->type_name("N")
      ->check(PositiveCount());
  command
      ->add_option(
          "--hardware", options->hardware,
          "hardware file (text format), e.g. configs/hardware/h200.textproto; its fields\n"
          "are described in configs/schema/hardware.proto. A GPU means bfloat16 parameters\n"
          "and activations, a CPU float32")
      ->type_name("FILE");
  command->add_flag("--json", options->json, "print one JSON object, in bytes and seconds");
  command->callback([options, &code] {
    RequireAlone("eyrie plan");
    code = RunPlan(*options);
  });
}

}  // namespace eyrie
