#include "parallel/mesh.h"

namespace eyrie {

MeshGroups SplitWorld(MeshShape shape, std::unique_ptr<Communicator> world) {
  EYRIE_CHECK(world->size() == shape.ranks());
  const int rank = world->rank();
  const MeshPlace place(shape, rank);
  MeshGroups groups;
  groups.tensor = world->Split(rank / shape.tensor, rank);
  groups.sequence = world->Split(place.data * shape.tensor + place.tensor, rank);
  groups.data = world->Split(place.sequence * shape.tensor + place.tensor, rank);
  groups.replicas = world->Split(place.tensor, rank);
  groups.world = std::move(world);
  return groups;
}

Mesh::Mesh(MeshShape shape, MeshGroups groups) : shape_(shape), groups_(std::move(groups)) {
  EYRIE_CHECK(groups_.world->size() == shape.ranks());
}

Mesh::Mesh(const Mesh& inner, const Wrap& wrap)
    : shape_(inner.shape()),
      groups_{.world = wrap("world", inner.world()),
              .tensor = wrap("tensor", inner.tensor()),
              .sequence = wrap("sequence", inner.sequence()),
              .data = wrap("data", inner.data()),
              .replicas = wrap("replicas", inner.replicas())} {}

}  // namespace eyrie
