// The life of a distributed command: MPI, threads, the mesh, and how it ends.
#pragma once

#include <functional>
#include <memory>

#include "configs/schema/config.pb.h"
#include "parallel/mesh.h"

namespace eyrie {

class Job {
 public:
  // All ranks of the job; a group of one when it was not started by an MPI launcher.
  Communicator& world() { return *world_; }
  // Sets this rank's threads, selects its GPU and builds the mesh. `config` is resolved.
  Mesh MakeMesh(const config::Config& config);

 private:
  friend ExitCode RunJob(const std::function<ExitCode(Job&)>& body);
  explicit Job(std::unique_ptr<Communicator> world) : world_(std::move(world)) {}
  std::unique_ptr<Communicator> world_;
};

// Threads that this rank may run: the cores that it may use, which its launcher may have bound it
// to, shared with the ranks of its node that may use them too. At least one. Collective.
int ShareOfCores(Communicator& world);

// Runs body on every rank and returns the process's exit code. An error prints one line on stderr;
// one that a rank met alone ends the other ranks too.
ExitCode RunJob(const std::function<ExitCode(Job&)>& body);

// For a command that writes files as one process, and uses no ranks: throws kBadInput where several
// were started, which would write the same ones. One of them says so.
void RequireAlone(const char* command);

// Prints "eyrie: message" on one line, with control characters as \xNN, if there is a message.
void PrintError(const std::string& message);

// What the launcher's environment says of this process, before MPI starts: true for rank 0 and
// outside MPI.
bool SpeaksForJob();

}  // namespace eyrie
