#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/options.h"
#include "launcher/config.h"
#include "launcher/evaluate.h"
#include "launcher/inference.h"

namespace eyrie {
namespace {

struct EvalOptions {
  InferenceOptions inference;
  std::string data;
  int64_t sequence_length = 0;
  int64_t sequences = 0;
  int64_t micro_batch = 0;
};

ExitCode Eval(const EvalOptions& options, Job& job) {
  Inference inference(options.inference, Inference::Layout::kData, job);
  const auto& config = inference.config();
  const int64_t length =
      options.sequence_length > 0 ? options.sequence_length : config.train().sequence_length();
  const int64_t micro = options.micro_batch > 0
                            ? options.micro_batch
                            : std::max<int64_t>(1, config.train().micro_batch_size());
  const int64_t chunk = config.train().chunk_length();
  std::unique_ptr<BatchReader> reader;
  Collectively(job.world(), [&] {
    ConfigErrors errors;
    ValidateSequence(config, "--sequence-length", length, errors);
    ThrowIfAny(errors);
    reader = std::make_unique<BatchReader>(
        BatchReader::Options{.prefix = options.data,
                             .max_batch = micro,
                             .length = length,
                             .vocab_size = config.model().vocab_size(),
                             .chunk = inference.mesh().sequence().rank(),
                             .chunks = inference.mesh().sequence().size(),
                             .stripe = chunk,
                             .packing = config.data().packing(),
                             .labels = config.data().labels(),
                             .device = inference.run().params.device()});
    reader->CheckPart(job.world().rank(), job.world().size());
  });
  int64_t sequences = reader->sampler().windows();
  if (options.sequences > 0) sequences = std::min(sequences, options.sequences);
  const Evaluation result =
      Evaluate(inference.run(), inference.model(), *reader, sequences, micro, chunk);
  const bool speaks = inference.mesh().is_root();
  if (!std::isfinite(result.loss)) {
    throw AgreedError(ExitCode::kFailed,
                      speaks ? StrCat(options.inference.checkpoint, ": the loss on ", options.data,
                                      " is not finite")
                             : "");
  }
  if (speaks) {
    const nlohmann::ordered_json object = {
        {"loss", result.loss},         {"perplexity", std::exp(result.loss)},
        {"accuracy", result.accuracy}, {"exact_sequences", result.exact_sequences},
        {"tokens", result.tokens},     {"sequences", result.sequences},
        {"sequence_length", length}};
    std::cout << object.dump() << std::endl;
  }
  return ExitCode::kOk;
}

}  // namespace

void AddEvalCommand(CLI::App& app, ExitCode& code) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand(
      "eval",
      "Measure a checkpoint's loss and accuracy on a token file.\n\n"
      "The file is cut into whole sequences, in order, and its tail left out. Prints one JSON\n"
      "object: loss (nats a token), perplexity, accuracy (the share of tokens that the largest\n"
      "logit predicts), exact_sequences (the share of sequences all of whose tokens it predicts),\n"
      "tokens, sequences, sequence_length. Tokens are those whose labels count: with data.labels:\n"
      "GIVEN, what PREFIX.labels says. As in training, train.chunk_length tokens run at once (0:\n"
      "all), and memory follows them. Under mpirun the ranks share the sequences.");
  AddInferenceOptions(*command, options->inference);
  command->add_option("--data", options->data, "token file: PREFIX.bin and PREFIX.idx")
      ->required()
      ->type_name("PREFIX");
  command
      ->add_option("--sequence-length", options->sequence_length,
                   "tokens a sequence (default: the training's)")
      ->check(PositiveCount());
  command->add_option("--sequences", options->sequences, "evaluate only so many (default: all)")
      ->check(PositiveCount());
  command
      ->add_option("--micro-batch", options->micro_batch,
                   "sequences a rank runs at once (default: the training's)")
      ->check(PositiveCount());
  command->callback(
      [options, &code] { code = RunJob([&](Job& job) { return Eval(*options, job); }); });
}

}  // namespace eyrie
