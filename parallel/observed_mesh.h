// A mesh whose operations are recorded, or seem to cross a slower network.
#pragma once

#include <chrono>

#include "parallel/mesh.h"
#include "parallel/trace.h"

namespace eyrie {

// `mesh`, which must outlive it, with every operation recorded in `trace` (null: not) from its
// start to its completion (on a GPU, on the communicator's stream), or to the moment when this rank
// learnt of it (on a CPU), and every wait. An operation completes no sooner than `latency` after
// its start; the rank may compute meanwhile.
Mesh ObservedMesh(const Mesh& mesh, Trace* trace, std::chrono::microseconds latency);

}  // namespace eyrie
