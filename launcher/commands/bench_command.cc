#include <CLI/CLI.hpp>

#include "launcher/commands/bench.h"
#include "launcher/commands/commands.h"

namespace eyrie {

void AddBenchCommand(CLI::App& app, ExitCode& code) {
  CLI::App* command = app.add_subcommand(
      "bench",
      "Measure this machine's speed, next to what its memory and arithmetic allow.\n\n"
      "Ceilings are measured in the same run, with as many threads. Figures are medians, on "
      "random\n"
      "data. With --json the table is one JSON object.");
  command->require_subcommand(1);
  AddBenchKernels(*command, code);
  AddBenchCheckpoint(*command, code);
  AddBenchStep(*command, code);
  AddBenchDecode(*command, code);
}

}  // namespace eyrie
