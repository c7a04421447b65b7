#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>

#include "core/random.h"
#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/options.h"
#include "launcher/inference.h"
#include "launcher/tokenizer.h"

namespace eyrie {
namespace {

struct GenerateOptions {
  InferenceOptions inference;
  std::string prompt;
  std::string tokenizer;
  int64_t max_tokens = 0;
  double temperature = 1.0;
  int64_t top_k = 0;
  uint64_t seed = 0;
};

// Draws from softmax(logits / temperature) over the top_k largest (0: all). Temperature 0 takes the
// largest; ties go to the lower id.
int32_t Sample(const Tensor& logits, double temperature, int64_t top_k, double uniform) {
  const float* z = logits.data<float>();
  std::vector<int32_t> ids(static_cast<size_t>(logits.size()));
  std::iota(ids.begin(), ids.end(), 0);
  const auto larger = [z](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
  if (temperature == 0) return *std::min_element(ids.begin(), ids.end(), larger);
  if (top_k > 0 && top_k < logits.size()) {
    std::partial_sort(ids.begin(), ids.begin() + top_k, ids.end(), larger);
    ids.resize(static_cast<size_t>(top_k));
  }
  const float largest = z[*std::min_element(ids.begin(), ids.end(), larger)];
  std::vector<double> cumulative;
  double sum = 0.0;
  for (int32_t id : ids) {
    sum += std::exp((static_cast<double>(z[id]) - largest) / temperature);
    cumulative.push_back(sum);
  }
  const auto at = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * sum);
  return ids[static_cast<size_t>(
      std::min(at - cumulative.begin(), static_cast<std::ptrdiff_t>(ids.size()) - 1))];
}

ExitCode Generate(const GenerateOptions& options, Job& job) {
  Inference inference(options.inference, Inference::Layout::kTensor, job);
  const int64_t vocab = inference.config().model().vocab_size();
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<int32_t> tokens;
  Collectively(job.world(), [&] {
    const std::string& spec = options.tokenizer.empty() ? inference.tokenizer() : options.tokenizer;
    if (spec.empty()) ThrowBadInput("the checkpoint has no data.tokenizer: give --tokenizer");
    tokenizer = MakeTokenizer(spec, vocab);
    tokens = tokenizer->Encode(options.prompt);
    // An empty prompt begins a document, after the end of another.
    if (tokens.empty()) tokens = {tokenizer->end_of_document()};
  });

  const bool prints = inference.mesh().is_root();
  const Random random(options.seed, "generate");
  Decoder decoder(inference, static_cast<int64_t>(tokens.size()) + options.max_tokens);
  TextStream text(*tokenizer);
  const auto print = [&](const std::string& part) {
    if (!prints) return;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
  };
  print(text.Add(tokens));
  Tensor logits = decoder.Feed(tokens);
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const int32_t token = Sample(logits, options.temperature, options.top_k,
                                 random.Uniform(static_cast<uint64_t>(i)));
    if (token == tokenizer->end_of_document()) break;
    print(text.Add({token}));
    if (i + 1 < options.max_tokens) logits = decoder.Feed({token});
  }
  print(text.Rest() + "\n");
  return ExitCode::kOk;
}

}  // namespace

void AddGenerateCommand(CLI::App& app, ExitCode& code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate",
      "Continue a prompt with a trained model.\n\n"
      "Prints the prompt and its continuation, as it comes, until --max-tokens or the end of the\n"
      "document. The cost of a token does not grow with its position, but where the pattern has\n"
      "global attention. Under mpirun the ranks split the model.");
  AddInferenceOptions(*command, options->inference);
  command->add_option("--prompt", options->prompt, "text to continue")->required();
  command->add_option("--max-tokens", options->max_tokens, "tokens to add at most")
      ->required()
      ->check(PositiveCount());
  command
      ->add_option("--temperature", options->temperature,
                   "of sampling; 0 takes the likeliest token (default: 1)")
      ->check(Within(0, 1e6, "NONNEGATIVE"));
  command
      ->add_option("--top-k", options->top_k,
                   "sample among the k likeliest tokens (default: 0, all)")
      ->check(NonNegativeCount());
  command->add_option("--seed", options->seed, "of sampling (default: 0)");
  command->add_option("--tokenizer", options->tokenizer,
                      "byte or sentencepiece:MODEL (default: the checkpoint's own)");
  command->callback(
      [options, &code] { code = RunJob([&](Job& job) { return Generate(*options, job); }); });
}

}  // namespace eyrie
