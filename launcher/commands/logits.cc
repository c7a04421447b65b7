#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>

#include "core/safetensors.h"
#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/options.h"
#include "launcher/inference.h"

namespace eyrie {
namespace {

struct LogitsOptions {
  InferenceOptions inference;
  std::string tokens;
  std::string output;
  int64_t prefill = -1;
};

std::vector<int32_t> ParseTokens(const std::string& text, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  std::istringstream in(text);
  for (std::string word; in >> word;) {
    int32_t token = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), token);
    if (error != std::errc() || end != word.data() + word.size()) {
      ThrowBadInput("--tokens: \"", word, "\" is not a token id");
    }
    if (token < 0 || token >= vocab_size) {
      ThrowBadInput("--tokens: id ", token, " is outside model.vocab_size = ", vocab_size);
    }
    tokens.push_back(token);
  }
  if (tokens.empty()) ThrowBadInput("--tokens is empty");
  return tokens;
}

// Refuses, before any work, a path that no file can be at.
void CheckOutput(const std::filesystem::path& output) {
  const auto refuse = [&](const char* why) { ThrowBadInput("--output: ", output.string(), why); };
  if (!output.has_filename()) refuse(" does not name a file");
  std::error_code error;
  if (std::filesystem::is_directory(output, error)) refuse(" is a folder");
  const auto folder = output.has_parent_path() ? output.parent_path() : ".";
  if (!std::filesystem::is_directory(folder, error)) refuse(" lies in a folder that is not there");
}

void WriteLogits(const std::filesystem::path& output, const Tensor& logits) {
  std::filesystem::path partial = output;
  partial += ".partial";
  std::error_code ignored;
  std::filesystem::remove(partial, ignored);
  try {
    SafetensorsWriter writer(partial, {{"logits", logits.dtype, logits.shape}});
    writer.Write(logits.raw);
    writer.Finish();
    std::filesystem::rename(partial, output);
  } catch (...) {
    std::filesystem::remove(partial, ignored);
    throw;
  }
}

ExitCode Logits(const LogitsOptions& options, Job& job) {
  Inference inference(options.inference, Inference::Layout::kTensor, job);
  const int64_t vocab = inference.config().model().vocab_size();
  std::vector<int32_t> tokens;
  Collectively(job.world(), [&] {
    tokens = ParseTokens(options.tokens, vocab);
    if (inference.mesh().is_root()) CheckOutput(options.output);
  });

  const auto total = static_cast<int64_t>(tokens.size());
  OwnedTensor logits(DType::kF32, {total, vocab});
  int64_t done = 0;
  const auto keep = [&](const Tensor& rows) {
    Copy(rows, logits.tensor.Rows(done, done + rows.dim(0)));
    done += rows.dim(0);
  };
  Decoder decoder(inference, total);
  const int64_t prefill = options.prefill < 0 ? total : std::min(options.prefill, total);
  if (prefill > 0) decoder.Feed({tokens.begin(), tokens.begin() + prefill}, keep);
  for (int64_t i = prefill; i < total; ++i) {
    decoder.Feed({tokens[static_cast<size_t>(i)]}, keep);
  }
  Collectively(job.world(), [&] {
    if (inference.mesh().is_root()) WriteLogits(options.output, logits.tensor);
  });
  return ExitCode::kOk;
}

}  // namespace

void AddLogitsCommand(CLI::App& app, ExitCode& code) {
  auto options = std::make_shared<LogitsOptions>();
  CLI::App* command = app.add_subcommand(
      "logits",
      "Write the logits of a token sequence, one document, to a safetensors file.\n\n"
      "Tensor \"logits\", float32 [tokens, vocabulary]; row t predicts token t + 1. The tokens "
      "run\n"
      "through the model's state as in generation: first --prefill of them in chunks, then one at\n"
      "a time. Either way the result is the same up to rounding.");
  AddInferenceOptions(*command, options->inference);
  command->add_option("--tokens", options->tokens, "token ids, e.g. \"17 4 291\"")
      ->required()
      ->type_name("IDS");
  command->add_option("--output", options->output, "file to write")
      ->required()
      ->type_name("FILE.safetensors");
  command
      ->add_option("--prefill", options->prefill,
                   "tokens to run in chunks, before single steps (default: all)")
      ->check(NonNegativeCount());
  command->callback(
      [options, &code] { code = RunJob([&](Job& job) { return Logits(*options, job); }); });
}

}  // namespace eyrie
