#include "launcher/job.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <vector>

#include "core/threads.h"
#include "launcher/agree.h"
#include "launcher/device.h"
#include "parallel/mpi_communicator.h"

namespace eyrie {

int ShareOfCores(Communicator& world) {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  // Where there are more cores than a set holds, as if all ranks shared them.
  if (sched_getaffinity(0, sizeof(mine), &mine) != 0) CPU_SET(0, &mine);
  std::vector<int32_t> ranks(CPU_SETSIZE);  // that may use each core
  const auto may_use = [&](int core) { return CPU_ISSET(static_cast<size_t>(core), &mine) != 0; };
  for (int core = 0; core < CPU_SETSIZE; ++core) ranks[static_cast<size_t>(core)] = may_use(core);
  const Tensor counts{ranks.data(), DType::kI32, Device::kCpu, {CPU_SETSIZE}};
  world.SplitNode()->AllReduce(counts, ReduceOp::kSum).Wait();
  int most = 1;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (may_use(core)) most = std::max<int>(most, ranks[static_cast<size_t>(core)]);
  }
  return std::max(1, omp_get_num_procs() / most);
}

Mesh Job::MakeMesh(const config::Config& config) {
  const int share = ShareOfCores(*world_), threads = config.run().threads();
  SetThreads(threads == 0 ? share : threads);
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
