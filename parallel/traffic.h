// Counts what a rank sends. Collectives count as the algorithms that send the least: of n bytes
// over R ranks, an all-reduce sends 2 (R - 1) / R n in 2 log2 R messages, a reduce-scatter or an
// all-gather (n is the whole) half of that. Thakur, Rabenseifner and Gropp, "Optimization of
// collective communication operations in MPICH", 2005; a ring sends as many bytes in more messages.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/mesh.h"

namespace eyrie {

struct Traffic {
  double bytes = 0.0;
  int64_t messages = 0;

  Traffic& operator+=(const Traffic& other) {
    bytes += other.bytes;
    messages += other.messages;
    return *this;
  }
  friend Traffic operator*(int64_t factor, const Traffic& traffic) {
    return {static_cast<double>(factor) * traffic.bytes, factor * traffic.messages};
  }
  bool operator==(const Traffic&) const = default;
};

// Of a rank, by the axis whose communicator it used.
struct MeshTraffic {
  Traffic tensor, sequence, data, replicas, world;

  MeshTraffic& operator+=(const MeshTraffic& other);
  friend MeshTraffic operator*(int64_t factor, const MeshTraffic& traffic);
};

// `inner`, counted in `traffic`, which must outlive it.
std::unique_ptr<Communicator> MakeCountingCommunicator(std::unique_ptr<Communicator> inner,
                                                       Traffic& traffic);
MeshGroups CountingGroups(MeshGroups inner, MeshTraffic& traffic);

// Rank `rank` of a mesh whose other ranks are not there: everything it sends or receives is
// complete at once and moves nothing.
MeshGroups AbsentGroups(MeshShape shape, int rank);

}  // namespace eyrie
