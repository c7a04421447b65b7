// The subcommands. Each function, in <name>.cc, adds one to the application: its options,
// its help, and a callback that runs it and stores the process's exit code.
#pragma once

#include "core/error.h"

namespace CLI {
class App;
}

namespace eyrie {

void AddTrainCommand(CLI::App& app, ExitCode& code);
void AddPlanCommand(CLI::App& app, ExitCode& code);
void AddEvalCommand(CLI::App& app, ExitCode& code);
void AddGenerateCommand(CLI::App& app, ExitCode& code);
void AddLogitsCommand(CLI::App& app, ExitCode& code);
void AddBenchCommand(CLI::App& app, ExitCode& code);
void AddTokenizeCommand(CLI::App& app);
void AddSynthCommand(CLI::App& app);
void AddCheckpointCommand(CLI::App& app);

}  // namespace eyrie
