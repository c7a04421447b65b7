// Preloaded into eyrie: rank 1 of a communicator stops where ranks connect, as a machine that hangs
// there would.
#include <dlfcn.h>
#include <nccl.h>

#include <csignal>

extern "C" ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  if (rank == 1) raise(SIGSTOP);
  static const auto real =
      reinterpret_cast<decltype(&ncclCommInitRank)>(dlsym(RTLD_NEXT, "ncclCommInitRank"));
  return real(comm, ranks, id, rank);
}
