// The mesh: ranks laid out as data x sequence x tensor, tensor fastest, so that a tensor group
// stays inside a node. Built once, then passed down; each axis owns its communicator.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "parallel/communicator.h"

namespace eyrie {

struct MeshShape {
  int data = 1;
  int sequence = 1;
  int tensor = 1;
  int ranks() const { return data * sequence * tensor; }
};

// Where a rank stands on each axis.
struct MeshPlace {
  MeshPlace(MeshShape shape, int rank)
      : data(rank / (shape.tensor * shape.sequence)),
        sequence(rank / shape.tensor % shape.sequence),
        tensor(rank % shape.tensor) {}
  int data, sequence, tensor;
};

// A rank's communicators: see the accessors of Mesh.
struct MeshGroups {
  std::unique_ptr<Communicator> world, tensor, sequence, data, replicas;
};
// `world` has exactly shape.ranks() ranks.
MeshGroups SplitWorld(MeshShape shape, std::unique_ptr<Communicator> world);

class Mesh {
 public:
  Mesh(MeshShape shape, MeshGroups groups);
  Mesh(MeshShape shape, std::unique_ptr<Communicator> world)
      : Mesh(shape, SplitWorld(shape, std::move(world))) {}
  // A wrapper around each communicator of another mesh, which must outlive this one.
  using Wrap = std::function<std::unique_ptr<Communicator>(const char* axis, Communicator& inner)>;
  Mesh(const Mesh& inner, const Wrap& wrap);
  // One rank.
  Mesh() : Mesh(MeshShape{}, MakeLocalCommunicator()) {}

  const MeshShape& shape() const { return shape_; }
  Communicator& world() const { return *groups_.world; }
  // The other shards of my parameters; the other chunks of my sequences; other sequences.
  Communicator& tensor() const { return *groups_.tensor; }
  Communicator& sequence() const { return *groups_.sequence; }
  Communicator& data() const { return *groups_.data; }
  // data x sequence: the ranks that hold the same parameters, over which gradients are summed.
  Communicator& replicas() const { return *groups_.replicas; }
  bool is_root() const { return groups_.world->rank() == 0; }

 private:
  MeshShape shape_;
  MeshGroups groups_;
};

}  // namespace eyrie
