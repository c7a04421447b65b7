#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "launcher/commands/commands.h"
#include "launcher/commands/options.h"
#include "launcher/job.h"
#include "launcher/synthetic.h"

namespace eyrie {
namespace {

struct Arguments {
  std::string output;
  int64_t sequences = 0, length = 0, vocab = 0, copied = 16, pairs = 8, shortest = 1;
  uint64_t seed = 0;
};

void Write(const SyntheticTask& task, const Arguments& arguments) {
  RequireAlone("eyrie synth");
  const std::string& output = arguments.output;
  if (output.empty() || output.ends_with('/')) {
    ThrowBadInput("--output: \"", output, "\" is not the prefix of a file name");
  }
  const int64_t labels = WriteSynthetic(task, output, arguments.sequences, arguments.seed);
  std::cout << output << ": " << arguments.sequences << " sequences of " << task.length
            << " tokens, " << labels << " labels" << std::endl;
}

}  // namespace

void AddSynthCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "synth", "Make the data of a synthetic task: PREFIX and PREFIX.labels, each .bin and .idx");
  command->footer(
      "For configurations with data.labels: GIVEN, in which losses and accuracy are those of the\n"
      "labels alone. Sequence i is a function of the seed and i alone. See configs/tasks and\n"
      "docs/results.md.\n\n"
      "Example:\n"
      "  eyrie synth associative-recall --pairs 4 --length 64 --vocab 64 --sequences 100000 \\\n"
      "      --output data/recall/train");
  command->require_subcommand(1);
  auto arguments = std::make_shared<Arguments>();
  // Each task has the options that all share, and its own.
  const auto add = [&](const char* name, const char* description, int64_t length, int64_t vocab,
                       auto make) {
    CLI::App* task = command->add_subcommand(name, description);
    task->add_option("--output", arguments->output, "where the files go, once they are whole")
        ->required()
        ->type_name("PREFIX");
    task->add_option("--sequences", arguments->sequences, "how many")
        ->required()
        ->check(PositiveCount());
    task->add_option("--length", arguments->length,
                     StrCat("tokens of a sequence (default ", length, ")"))
        ->check(NonNegativeCount());
    task->add_option("--seed", arguments->seed, "another seed gives other sequences (default 0)");
    if (vocab > 0) {
      task->add_option("--vocab", arguments->vocab, StrCat("token ids (default ", vocab, ")"))
          ->check(NonNegativeCount());
    }
    task->callback([=] {
      if (task->count("--length") == 0) arguments->length = length;
      if (vocab > 0 && task->count("--vocab") == 0) arguments->vocab = vocab;
      Write(make(*arguments), *arguments);
    });
    return task;
  };
  add("selective-copying",
      "Tokens (ids from 2 on) among noise (0), then markers (1): tell the tokens in order",
      /*length=*/4096, /*vocab=*/16,
      [](const Arguments& a) { return SelectiveCopying(a.length, a.copied, a.vocab); })
      ->add_option("--copied", arguments->copied, "tokens to copy (default 16)")
      ->check(NonNegativeCount());
  add("induction-heads",
      "Random tokens; id 0 at one place and at the end: tell what followed it there",
      /*length=*/256, /*vocab=*/16,
      [](const Arguments& a) { return InductionHeads(a.length, a.vocab); });
  add("associative-recall",
      "Keys (lower half of the ids) and values, then the keys among random values: tell theirs",
      /*length=*/64, /*vocab=*/8192,
      [](const Arguments& a) { return AssociativeRecall(a.length, a.pairs, a.vocab); })
      ->add_option("--pairs", arguments->pairs, "pairs of key and value (default 8)")
      ->check(NonNegativeCount());
  add("parity", "Bits, then padding (id 2): tell at the last bit whether the ones are odd",
      /*length=*/40, /*vocab=*/0, [](const Arguments& a) { return Parity(a.length, a.shortest); })
      ->add_option("--shortest", arguments->shortest, "the fewest bits (default 1)")
      ->check(NonNegativeCount());
}

}  // namespace eyrie
