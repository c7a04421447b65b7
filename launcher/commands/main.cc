// eyrie: trains recurrent language models on many machines. See docs/architecture.md.
#include <fcntl.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "launcher/job.h"

namespace {

// What was wrong with the command line: of a command that is missing or misspelt, which there are.
std::string Message(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  std::string path = app.get_name();
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    path += " " + command->get_name();
  }
  if (command->get_require_subcommand_min() == 0) return error.what();
  const std::vector<std::string> rest = command->remaining();
  const std::string which = rest.empty() ? "" : eyrie::StrCat("\"", rest.front(), "\" is none: ");
  return eyrie::StrCat(which, path, " takes a subcommand; see ", path, " --help");
}

// A file that took the place of a closed standard stream would be taken for it. What opens instead
// cannot be used that way round, so that whoever misses the stream gets an error.
void OccupyClosedStreams() {
  for (int stream = 0; stream <= 2; ++stream) {
    if (fcntl(stream, F_GETFD) < 0 && errno == EBADF) {
      open("/dev/null", stream == 0 ? O_WRONLY : O_RDONLY);
    }
  }
}

// A checkpoint has a file for each rank that wrote it, and any number of ranks may read them all:
// as many files may be open as the system allows, not as many as it thinks usual.
void AllowManyFiles() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// The exit code of a command, once all that it printed is out.
int AfterOutput(eyrie::ExitCode code) {
  std::cout.flush();
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (!flushed || std::ferror(stdout) != 0 || !std::cout) {
    const std::string reason = errno != 0 ? eyrie::StrCat(": ", std::strerror(errno)) : "";
    eyrie::PrintError("standard output: cannot write" + reason);
    if (code == eyrie::ExitCode::kOk) code = eyrie::ExitCode::kFailed;
  }
  return static_cast<int>(code);
}

}  // namespace

int main(int argc, char** argv) {
  using eyrie::ExitCode;
  // A limit on the size of files is then an error of a write, like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  OccupyClosedStreams();
  AllowManyFiles();
  CLI::App app{
      "Trains Griffin, Hawk, xLSTM, Mamba, TransNormerLLM and Transformer language models on many\n"
      "ranks, and works with their checkpoints. Start distributed commands with mpirun; alone, a\n"
      "command is one rank.\n"
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
    if (eyrie::SpeaksForJob()) app.exit(success);
    return AfterOutput(ExitCode::kOk);
  } catch (const CLI::ParseError& error) {
    // As a job, whose ranks end together: mpirun kills the others when one is gone, and the one
    // that speaks must have spoken.
    return static_cast<int>(eyrie::RunJob([&](eyrie::Job& job) -> ExitCode {
      throw eyrie::AgreedError(ExitCode::kBadInput,
                               job.world().rank() == 0 ? Message(app, error) : "");
    }));
  } catch (const eyrie::Error& error) {
    eyrie::PrintError(error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    eyrie::PrintError(error.what());
    return static_cast<int>(ExitCode::kFailed);
  }
  // A run's results are in its directory, whether or not anybody saw its progress.
  return app.got_subcommand("train") ? static_cast<int>(code) : AfterOutput(code);
}
