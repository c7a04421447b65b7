#include "parallel/mesh.h"

#include <utility>

namespace eyrie {

Mesh::Mesh(MeshShape shape, std::unique_ptr<Communicator> world)
    : shape_(shape), world_(std::move(world)) {
  EYRIE_CHECK(world_->size() == shape.ranks());
  const int rank = world_->rank();
  const int tensor = rank % shape.tensor;
  const int sequence = rank / shape.tensor % shape.sequence;
  const int data = rank / (shape.tensor * shape.sequence);
  tensor_ = world_->Split(rank / shape.tensor, rank);
  sequence_ = world_->Split(data * shape.tensor + tensor, rank);
  data_ = world_->Split(sequence * shape.tensor + tensor, rank);
  replicas_ = world_->Split(tensor, rank);
}

Mesh::Mesh(const Mesh& inner, const Wrap& wrap)
    : shape_(inner.shape()),
      world_(wrap("world", inner.world())),
      tensor_(wrap("tensor", inner.tensor())),
      sequence_(wrap("sequence", inner.sequence())),
      data_(wrap("data", inner.data())),
      replicas_(wrap("replicas", inner.replicas())) {}

}  // namespace eyrie
