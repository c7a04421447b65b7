#include "launcher/job.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>

#include "core/threads.h"
#include "launcher/agree.h"
#include "launcher/device.h"
#include "parallel/mpi_communicator.h"

namespace eyrie {

Mesh Job::MakeMesh(const config::Config& config) {
  int threads = config.run().threads();
  const int on_node = world_->RanksOnNode();
  if (threads == 0) {
    // A rank that its launcher bound to some cores uses those; otherwise ranks share the node.
    const int mine = omp_get_num_procs();
    const bool bound = mine < sysconf(_SC_NPROCESSORS_ONLN);
    threads = bound ? mine : std::max(1, mine / on_node);
  }
  SetThreads(threads);
  LimitWaits(config.run().timeout_seconds());
  const auto& parallel = config.parallel();
  return Mesh({parallel.data(), parallel.sequence(), parallel.tensor()},
              UseDevice(config, world_->Split(0, world_->rank())));
}

ExitCode RunJob(const std::function<ExitCode(Job&)>& body) {
  std::optional<MpiSession> mpi;
  if (LaunchedByMpi()) mpi.emplace();
  Job job(mpi ? mpi->World() : MakeLocalCommunicator());
  ExitCode code = ExitCode::kFailed;
  try {
    return body(job);
  } catch (const AgreedError& error) {
    PrintError(error.what());
    return error.code();
  } catch (const Error& error) {
    PrintError(error.what());
    code = error.code();
  } catch (const std::bad_alloc&) {
    PrintError("out of memory");
  } catch (const std::exception& error) {
    PrintError(error.what());
  }
  if (job.world().size() > 1) AbortAllRanks(static_cast<int>(code));
  return code;
}

void RequireAlone(const char* command) {
  const ExitCode code = RunJob([&](Job& job) {
    if (job.world().size() == 1) return ExitCode::kOk;
    throw AgreedError(
        ExitCode::kBadInput,
        job.world().rank() == 0 ? StrCat(command, " runs as one process, without mpirun") : "");
  });
  if (code != ExitCode::kOk) throw Error(code, "");
}

void PrintError(const std::string& message) {
  if (message.empty()) return;
  // One line, whatever names from files it repeats.
  std::string line;
  for (const char byte : message) {
    std::array<char, 8> escaped;
    std::snprintf(escaped.data(), escaped.size(), "\\x%02x", static_cast<unsigned char>(byte));
    line += std::iscntrl(static_cast<unsigned char>(byte)) ? escaped.data() : std::string(1, byte);
  }
  std::fprintf(stderr, "eyrie: %s\n", line.c_str());
}

bool SpeaksForJob() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::strcmp(rank, "0") == 0;
  }
  return true;
}

}  // namespace eyrie
