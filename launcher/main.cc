// eyrie: trains recurrent language models on many machines. See docs/architecture.md.
#include <CLI/CLI.hpp>
#include <csignal>
#include <iostream>

#include "launcher/checkpoint_command.h"
#include "launcher/commands.h"
#include "launcher/job.h"
#include "launcher/tokenize_command.h"

int main(int argc, char** argv) {
  using eyrie::ExitCode;
  // A limit on the size of files is then an error of a write, like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  CLI::App app{
      "Trains Griffin, Hawk, Mamba and Transformer language models on many ranks, and works with\n"
      "their checkpoints. Start distributed commands with mpirun; alone, a command is one rank.\n"
      "Exit codes: 0 done, 2 bad input, 3 failed while running, 130/143 stopped by a signal after\n"
      "saving.",
      "eyrie"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "eyrie " EYRIE_VERSION);
  app.failure_message(CLI::FailureMessage::simple);

  ExitCode code = ExitCode::kOk;
  eyrie::AddTrainCommand(app, code);
  eyrie::AddPlanCommand(app, code);
  eyrie::AddEvalCommand(app, code);
  eyrie::AddGenerateCommand(app, code);
  eyrie::AddLogitsCommand(app, code);
  eyrie::AddTokenizeCommand(app);
  eyrie::AddSynthCommand(app);
  eyrie::AddBenchCommand(app, code);
  eyrie::AddCheckpointCommand(app);

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return eyrie::SpeaksForJob() ? app.exit(success) : 0;
  } catch (const CLI::ParseError& error) {
    std::string message = error.what();
    if (argc > 1 && app.get_subcommands().empty()) {
      message = eyrie::StrCat("\"", argv[1], "\" is not a command; see eyrie --help");
    }
    if (eyrie::SpeaksForJob()) eyrie::PrintError(message);
    return static_cast<int>(ExitCode::kBadInput);
  } catch (const eyrie::Error& error) {
    eyrie::PrintError(error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    eyrie::PrintError(error.what());
    return static_cast<int>(ExitCode::kFailed);
  }
  return static_cast<int>(code);
}
