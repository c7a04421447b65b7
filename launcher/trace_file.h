// A run's timeline in a file, for chrome://tracing and ui.perfetto.dev: the Trace Event Format of
// Catapult, in which times are microseconds. A process is a rank. Its threads are the slices of the
// batch, with spans of computing ("ph": "X", "cat": "compute") and of waiting for messages
// ("wait"). An operation between ranks is an asynchronous span ("b" to "e", "communication") on a
// thread of its axis: they may overlap. Their args name the slice and the bytes.
#pragma once

#include <fstream>
#include <string>

#include "parallel/mesh.h"
#include "parallel/trace.h"

namespace eyrie {

class TraceFile {
 public:
  // Creates the file, on the root rank. Collective over the mesh; throws kBadInput. `device` is
  // where the ranks compute.
  TraceFile(const std::string& path, Device device, const Mesh& mesh);

  Trace& trace() { return trace_; }
  // Starts the recording, at time 0. Collective over the mesh.
  void Start(const Mesh& mesh);
  // Ends the recording, and writes that of all ranks; a second call does nothing. Collective over
  // the mesh.
  void Write(const Mesh& mesh);

 private:
  // This rank's events, as lines that end in a comma each.
  std::string Events(const Mesh& mesh) const;

  std::string path_;
  std::ofstream out_;
  bool written_ = false;
  Trace trace_;
  Moment origin_;
};

}  // namespace eyrie
