// Collectives among GPUs through NCCL. Tensors of the host still travel by MPI, so that one
// communicator serves both.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace eyrie {

// Takes over `host`, a communicator of the same ranks, each of which has selected a GPU of its own.
// Operations on GPU tensors are ordered after what the compute stream was given before, and travel
// on a stream of this communicator; waiting for their events orders the compute stream after them,
// and does not stop the host. When an operation is under way and none finishes for
// `timeout_seconds`, or a peer is lost, the process prints one line and ends with exit code 3; so
// it does where ranks do not all connect, in half a minute at least, or do not all end.
std::unique_ptr<Communicator> MakeNcclCommunicator(std::unique_ptr<Communicator> host,
                                                   int64_t timeout_seconds);

}  // namespace eyrie
