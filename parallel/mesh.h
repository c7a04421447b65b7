// The mesh: ranks laid out as data x sequence x tensor, tensor fastest, so that a tensor group
// stays inside a node. Built once, then passed down; each axis owns its communicator.
#pragma once

#include <functional>
#include <memory>

#include "parallel/communicator.h"

namespace eyrie {

struct MeshShape {
  int data = 1;
  int sequence = 1;
  int tensor = 1;
  int ranks() const { return data * sequence * tensor; }
};

class Mesh {
 public:
  // `world` has exactly shape.ranks() ranks.
  Mesh(MeshShape shape, std::unique_ptr<Communicator> world);
  // A wrapper around each communicator of another mesh, which must outlive this one.
  using Wrap = std::function<std::unique_ptr<Communicator>(const char* axis, Communicator& inner)>;
  Mesh(const Mesh& inner, const Wrap& wrap);
  // One rank.
  Mesh() : Mesh(MeshShape{}, MakeLocalCommunicator()) {}

  const MeshShape& shape() const { return shape_; }
  Communicator& world() const { return *world_; }
  Communicator& tensor() const { return *tensor_; }      // holds the other shards of my parameters
  Communicator& sequence() const { return *sequence_; }  // holds the other chunks of my sequences
  Communicator& data() const { return *data_; }          // holds other sequences
  // data x sequence: the ranks that hold the same parameters, over which gradients are summed.
  Communicator& replicas() const { return *replicas_; }
  bool is_root() const { return world_->rank() == 0; }

 private:
  MeshShape shape_;
  std::unique_ptr<Communicator> world_, tensor_, sequence_, data_, replicas_;
};

}  // namespace eyrie
