// Communicators over MPI, for tensors in host memory, and the life of the MPI library.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace eyrie {

// True when this process was started by an MPI launcher (mpirun, srun), as its environment says.
bool LaunchedByMpi();

// Starts MPI, and ends it on destruction. At most one a process.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // A communicator over all ranks. It must not outlive the session.
  std::unique_ptr<Communicator> World();
};

// From now on a rank that waits longer than this for others, of which one may hang, prints one line
// and ends the job with exit code 3. Without a call ranks wait for ever.
void LimitWaits(int64_t seconds);

// Ends every rank of the job at once; for errors that one rank alone has met.
[[noreturn]] void AbortAllRanks(int exit_code);

}  // namespace eyrie
