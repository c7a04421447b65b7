// Runs the eyrie binary, alone or under mpirun, as a user would.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "launcher/indexed_dataset.h"
#include "tests/support/test_directory.h"

namespace eyrie {

struct ProcessResult {
  int code = -1;  // exit status; 128 + n when killed by signal n
  std::string out, err;
  double seconds = 0.0;      // that it lasted
  double cpu_seconds = 0.0;  // that it computed, whatever else the machine does
};

inline std::string ReadFile(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The program under test; a build that was carried to another machine says where it is.
inline std::string EyrieBinary() {
  const char* elsewhere = std::getenv("EYRIE_BINARY");
  return elsewhere != nullptr ? elsewhere : EYRIE_BINARY;
}

// The command line of `ranks` ranks of eyrie; 0: without mpirun.
inline std::vector<std::string> EyrieCommand(int ranks, const std::vector<std::string>& arguments) {
  std::vector<std::string> command;
  if (ranks > 0) {
    command = {"mpirun", "-n", std::to_string(ranks), "--oversubscribe", "--bind-to", "none"};
  }
  command.push_back(EyrieBinary());
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

// The same with a rank for each of `options`, what mpirun is told of that rank alone.
inline std::vector<std::string> EyrieCommand(const std::vector<std::vector<std::string>>& options,
                                             const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {"mpirun", "--oversubscribe", "--bind-to", "none"};
  for (size_t rank = 0; rank < options.size(); ++rank) {
    if (rank > 0) command.push_back(":");
    command.insert(command.end(), options[rank].begin(), options[rank].end());
    command.insert(command.end(), {"-n", "1", EyrieBinary()});
    command.insert(command.end(), arguments.begin(), arguments.end());
  }
  return command;
}

// Starts a process with its output in files `log`.out and `log`.err.
inline pid_t Start(const std::vector<std::string>& command, const std::string& log) {
  std::fflush(nullptr);  // or both would write what waits
  const pid_t child = fork();
  if (child != 0) return child;
  // mpirun refuses to run as root unless told twice; ranks here outnumber cores.
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 1);
  // Ranks of one machine need no look at its networks, which takes longer than most of these runs.
  setenv("OMPI_MCA_pml", "ob1", 0);
  setenv("OMPI_MCA_btl", "self,vader", 0);
  // When a rank fails, mpirun otherwise gives the others a second or two before it kills them.
  setenv("OMPI_MCA_odls_base_sigkill_timeout", "0", 1);
  setenv("OMP_NUM_THREADS", "1", 1);
  if (freopen((log + ".out").c_str(), "w", stdout) == nullptr ||
      freopen((log + ".err").c_str(), "w", stderr) == nullptr ||
      freopen("/dev/null", "r", stdin) == nullptr) {
    _exit(126);
  }
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  _exit(127);
}

// Waits for it. What does not end in ten minutes is told to, as a hang must not hang the tests.
inline ProcessResult Finish(pid_t child, const std::string& log) {
  const auto start = std::chrono::steady_clock::now();
  const auto lasted = [&] { return std::chrono::steady_clock::now() - start; };
  int status = 0;
  rusage usage{};
  for (auto next = std::chrono::seconds(600); wait4(child, &status, WNOHANG, &usage) == 0;) {
    if (lasted() > next) {
      kill(child, next == std::chrono::seconds(600) ? SIGTERM : SIGKILL);
      next += std::chrono::seconds(10);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  ProcessResult result;
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = ReadFile(log + ".out");
  result.err = ReadFile(log + ".err");
  result.seconds = std::chrono::duration<double>(lasted()).count();
  for (const timeval& time : {usage.ru_utime, usage.ru_stime}) {
    result.cpu_seconds +=
        static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  }
  return result;
}

inline ProcessResult RunCommand(std::vector<std::string> command) {
  const TestDirectory directory;
  const std::string log = (directory / "log").string();
  // A hang must not hang the tests.
  command.insert(command.begin(), {"timeout", "--kill-after=5", "300"});
  return Finish(Start(command, log), log);
}

inline ProcessResult RunEyrie(int ranks, const std::vector<std::string>& arguments) {
  return RunCommand(EyrieCommand(ranks, arguments));
}

// A command line with settings of a configuration behind it.
inline std::vector<std::string> WithSettings(std::vector<std::string> arguments,
                                             const std::vector<std::string>& settings) {
  for (const std::string& setting : settings) {
    arguments.insert(arguments.end(), {"--set", setting});
  }
  return arguments;
}

// What eyrie itself says on stderr, which must be one line.
inline std::string OnlyLine(const ProcessResult& result) {
  std::string found;
  int count = 0;
  std::istringstream in(result.err);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("eyrie: ")) ++count, found = line;
  }
  EXPECT_EQ(count, 1) << result.err;
  return found;
}

inline void ExpectParts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  }
}

// Exit code 2 within 20 s, and one line from eyrie, which holds every part.
inline void ExpectBadInput(const ProcessResult& result, const std::vector<std::string>& parts) {
  EXPECT_EQ(result.code, 2) << result.err;
  EXPECT_LT(result.seconds, 20.0);
  ExpectParts(OnlyLine(result), parts);
}

// The same of a process that was alone, and says nothing else.
inline void ExpectRefused(const ProcessResult& result, const std::vector<std::string>& parts) {
  ExpectBadInput(result, parts);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

// The processes of this run's ranks.
inline std::vector<pid_t> RanksOf(const std::filesystem::path& run) {
  std::vector<pid_t> ranks;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string command = ReadFile(entry.path() / "cmdline");
    if (command.rfind(EyrieBinary(), 0) == 0 && command.find(run.string()) != std::string::npos) {
      ranks.push_back(static_cast<pid_t>(std::stoi(name)));
    }
  }
  return ranks;
}

// Whether no rank of this run is left, or none is within ten seconds: mpirun may end before the
// last of those it has killed.
inline bool RanksAreGone(const std::filesystem::path& run) {
  for (int i = 0; i < 100 && !RanksOf(run).empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return RanksOf(run).empty();
}

// With `unfinished`, of a run that goes on or was cut off, whose last line may be half there.
inline std::vector<nlohmann::json> ReadMetrics(const std::filesystem::path& run,
                                               bool unfinished = false) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/!unfinished);
    if (!object.is_discarded()) lines.push_back(std::move(object));
  }
  return lines;
}

// Waits until a run has trained so many steps; false if it has not within two minutes.
inline bool WaitForSteps(const std::filesystem::path& run, size_t steps) {
  for (int i = 0; i < 1200; ++i) {
    if (ReadMetrics(run, /*unfinished=*/true).size() >= steps) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return false;
}

// A token file that can be learnt from: each token mostly follows from the one before it.
inline void WriteTokenFile(const std::string& prefix, int64_t documents, int32_t vocab,
                           uint32_t seed) {
  IndexedDatasetWriter writer(prefix, vocab);
  uint32_t state = seed;
  const auto next = [&] { return state = state * 1664525u + 1013904223u, state >> 8; };
  for (int64_t d = 0; d < documents; ++d) {
    std::vector<int32_t> tokens(30 + next() % 90);
    int32_t token = static_cast<int32_t>(next() % static_cast<uint32_t>(vocab));
    for (int32_t& out : tokens) {
      out = token;
      token = next() % 4 == 0 ? static_cast<int32_t>(next() % static_cast<uint32_t>(vocab))
                              : (token * 5 + 3) % vocab;
    }
    writer.AddDocument(tokens);
  }
  writer.Finish();
}

// Labels for a token file: of every `stride`-th token the one after it, of the others nothing.
inline void WriteLabelFile(const std::string& prefix, int32_t vocab, int64_t stride) {
  const IndexedDataset tokens(prefix);
  std::vector<int32_t> labels(static_cast<size_t>(tokens.total_tokens()), 0);
  for (int64_t i = 0; i + 1 < tokens.total_tokens(); i += stride) {
    int32_t& label = labels[static_cast<size_t>(i)];
    tokens.Read(i + 1, 1, &label);
    ++label;
  }
  IndexedDatasetWriter writer(prefix + ".labels", vocab + 1);
  writer.AddDocument(labels);
  writer.Finish();
}

// A Griffin whose every width divides by 4, other mixers' knobs for another pattern, and a training
// recipe of seconds.
inline std::string SmallTrainingConfig(const std::filesystem::path& data,
                                       const std::filesystem::path& run) {
  return R"(
    model {
      vocab_size: 64 width: 48 depth: 3
      pattern: ["recurrent+geglu", "recurrent+geglu", "local_attention+geglu"]
      recurrent { width: 48 gate_blocks: 4 }
      attention { heads: 4 head_width: 8 window: 12 }
      lightning_attention { heads: 4 head_width: 12 }
      mlp { width: 64 }
      mamba { width: 96 states: 4 }
      mlstm { heads: 4 width: 96 key_width: 24 gate_soft_cap: 15 }
      slstm { heads: 4 }
    }
    train {
      steps: 20 sequence_length: 32 global_batch_size: 8 micro_batch_size: 2 seed: 7
      validation_interval: 10 validation_sequences: 10
    }
    optimizer { learning_rate: 2e-3 warmup_steps: 4 }
    data { train: ")" +
         data.string() + R"(" validation: ")" + data.string() + R"(" }
    run { directory: ")" +
         run.string() + R"(" threads: 1 }
  )";
}

inline std::string WriteText(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file) << text;
  return file.string();
}

}  // namespace eyrie
