// `eyrie bench decode`: one token after another, at a given position.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "core/device.h"
#include "launcher/agree.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/options.h"
#include "launcher/inference.h"

namespace eyrie {
namespace {

struct DecodeOptions {
  std::string config;
  InferenceOptions inference;
  int64_t batch = 1;
  int64_t position = 0;
  int tokens = 20;
  bool json = false;
};

std::unique_ptr<Inference> Open(const DecodeOptions& options, Job& job) {
  if (!options.inference.checkpoint.empty()) {
    return std::make_unique<Inference>(options.inference, Inference::Layout::kTensor, job);
  }
  config::Config config;
  Collectively(job.world(), [&] {
    config = ConfigOptions{options.config, options.inference.settings}.Load();
  });
  return std::make_unique<Inference>(config, job);
}

ExitCode BenchDecode(const DecodeOptions& options, Job& job) {
  constexpr int64_t kChunk = 256;  // tokens that run at once up to the position
  const std::unique_ptr<Inference> inference = Open(options, job);
  const Model& model = inference->model();
  Run& run = inference->run();
  const int64_t batch = options.batch, vocab = inference->config().model().vocab_size();
  const int64_t capacity = options.position + options.tokens + 4;
  ModelState state = model.MakeState(run.params, batch, capacity);
  ModelState next = model.MakeState(run.params, batch, capacity);
  BenchDevice device(/*repeats=*/5, run.params.device(), run.params.dtype());
  const Tensor logits = device.Zeros(device.full(), {batch, 1, vocab});
  // One token's step reads these, and goes from either state into the other.
  const Tensor one_token = device.Tokens({batch, 1}, vocab);
  const Tensor one_position = device.Positions(batch, 1);
  Replay steps[2];
  int turn = 0;
  int64_t position = 0;
  const auto feed = [&](int64_t count) {
    const BenchDevice::Mark mark = device.mark();
    Tensor tokens = device.Tokens({batch, count}, vocab);
    run.positions = device.Positions(batch, count, position);
    if (count == 1) {
      Copy(tokens, one_token);
      Copy(run.positions, one_position);
      tokens = one_token;
      run.positions = one_position;
    }
    const auto step = [&] { model.Logits(run, tokens, &state, &next, logits); };
    run.mesh.world().Barrier();
    const double seconds = device.SecondsOf([&] {
      if (count > 1) return step();
      inference->Repeat(steps[turn], step);
    });
    device.Release(mark);
    std::swap(state, next);
    turn = 1 - turn;
    position += count;
    return seconds;
  };
  while (position < options.position) feed(std::min(kChunk, options.position - position));
  for (int i = 0; i < 4; ++i) feed(1);  // on a GPU two are recorded
  std::vector<double> seconds;
  for (int i = 0; i < options.tokens; ++i) {
    seconds.push_back(AllReduceValue(run.mesh.world(), feed(1), ReduceOp::kMax));
  }

  run.mesh.world().Barrier();
  const double read = AllReduceValue(run.mesh.world(), device.ReadBandwidth(), ReduceOp::kSum);
  const double bytes = AllReduceValue(
      run.mesh.world(), static_cast<double>(run.params.value_bytes()), ReduceOp::kSum);
  if (!run.mesh.is_root()) return ExitCode::kOk;
  const double median = Median(seconds);
  BenchReport report("decode", {"parameters", "ranks", "batch", "position", "ms", "tokens/s", "MB",
                                "GB/s", "share"});
  if (run.params.device() == Device::kCuda) report.Set("device", cuda::DeviceName());
  report.Set("read GB/s", read / 1e9);
  report.AddRow({run.params.table().TotalElements(), run.mesh.world().size(), batch,
                 options.position, median * 1e3, static_cast<double>(batch) / median, bytes / 1e6,
                 bytes / median / 1e9, bytes / median / read});
  report.Print(options.json);
  return ExitCode::kOk;
}

}  // namespace

void AddBenchDecode(CLI::App& bench, ExitCode& code) {
  auto options = std::make_shared<DecodeOptions>();
  CLI::App* command = bench.add_subcommand(
      "decode",
      "Time decoding, one token a step, after so many tokens.\n\n"
      "The share is of the bandwidth of reading memory, that a step would need to read every\n"
      "parameter once. Under mpirun the ranks split the model.");
  CLI::Option* file =
      command->add_option("--config", options->config, "configuration file: a fresh model")
          ->type_name("FILE");
  CLI::Option* checkpoint = command
                                ->add_option("--checkpoint", options->inference.checkpoint,
                                             "a checkpoint, or a run directory for its newest one")
                                ->type_name("DIR");
  auto* source = command->add_option_group("model");
  source->add_options(file, checkpoint);
  source->require_option(1);
  AddSettings(*command, options->inference.settings, "set one field; may be repeated");
  command->add_option("--batch", options->batch, "sequences (default: 1)")->check(PositiveCount());
  command->add_option("--position", options->position, "tokens before (default: 0)")
      ->check(NonNegativeCount());
  command->add_option("--tokens", options->tokens, "timed steps (default: 20)")
      ->check(PositiveCount());
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback(
      [options, &code] { code = RunJob([&](Job& job) { return BenchDecode(*options, job); }); });
}

}  // namespace eyrie
