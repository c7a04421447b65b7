// PlanCheckpoint of shard_files.h.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "launcher/manifest.h"
#include "launcher/shard_files.h"

namespace eyrie {
namespace {

// A box of a parameter, and where its bytes lie in the flat buffer of the rank that has them.
struct Box {
  Slice slice;
  int64_t offset = 0;  // elements
};

// The replica that writes a whole slice, where each has one.
int WriterOf(ParamId param, size_t group, MeshShape mesh) {
  const size_t replicas = static_cast<size_t>(mesh.data * mesh.sequence);
  return static_cast<int>((static_cast<size_t>(param) + group) % replicas);
}

// Adds pieces to the plan, still with a file for each rank of the mesh.
class Planner {
 public:
  Planner(const ParamTable& table, const std::vector<StoredGroup>& groups, MeshShape mesh,
          const BucketPlan& buckets)
      : table_(table), groups_(groups), mesh_(mesh), buckets_(buckets) {
    plan_.manifest.set_format_version(kCheckpointFormat);
    plan_.files.resize(static_cast<size_t>(mesh.ranks()));
    for (int rank = 0; rank < mesh.ranks(); ++rank)
      plan_.files[static_cast<size_t>(rank)].rank = rank;
  }

  CheckpointPlan Plan() {
    // What each replica owns of each parameter.
    owned_.resize(table_.specs().size() * static_cast<size_t>(buckets_.owners()));
    for (int owner = 0; buckets_.sharded() && owner < buckets_.owners(); ++owner) {
      for (const BucketPlan::Part& part : buckets_.Parts(owner))
        Owned(part.param, owner).push_back(part);
    }
    for (size_t group = 0; group < groups_.size(); ++group) {
      for (ParamId param = 0; param < static_cast<ParamId>(table_.specs().size()); ++param) {
        AddTensor(group, param);
      }
    }
    DropEmptyFiles();
    return std::move(plan_);
  }

 private:
  std::vector<BucketPlan::Part>& Owned(ParamId param, int owner) {
    return owned_[static_cast<size_t>(param * buckets_.owners() + owner)];
  }

  void AddTensor(size_t group, ParamId param) {
    const ParamSpec& spec = table_.spec(param);
    auto& stored = *plan_.manifest.add_tensor();
    stored.set_name(groups_[group].prefix + spec.name);
    stored.set_dtype(std::string(Name(groups_[group].dtype)));
    for (int axis = 0; axis < spec.shape.rank(); ++axis) stored.add_shape(spec.shape[axis]);
    const int parts = spec.shard_axis < 0 ? 1 : mesh_.tensor;
    for (int part = 0; part < parts; ++part) {
      const Slice slice = LocalSlice(spec, mesh_.tensor, part);
      if (groups_[group].owned && buckets_.sharded()) {
        for (int owner = 0; owner < buckets_.owners(); ++owner) {
          std::vector<Box> boxes;
          for (const BucketPlan::Part& own : Owned(param, owner)) {
            int64_t offset = own.owned;
            for (const Slice& box : BoxesOf(slice, own.range.begin, own.range.end)) {
              boxes.push_back({box, offset});
              offset += box.extent.size();
            }
          }
          AddPieces(group, param, owner * mesh_.tensor + part, boxes);
        }
      } else {
        AddPieces(group, param, WriterOf(param, group, mesh_) * mesh_.tensor + part,
                  {{slice, buckets_.offset(param)}});
      }
    }
  }

  // Adds `boxes` of the last tensor, in the file of `rank`.
  void AddPieces(size_t group, ParamId param, int rank, const std::vector<Box>& boxes) {
    const int tensor = plan_.manifest.tensor_size() - 1;
    auto& stored = *plan_.manifest.mutable_tensor(tensor);
    for (const Box& box : boxes) {
      auto& piece = *stored.add_piece();
      piece.set_file(rank);
      std::string key = stored.name();
      for (int axis = 0; axis < box.slice.extent.rank(); ++axis) {
        piece.add_offset(box.slice.offset[axis]);
        piece.add_shape(box.slice.extent[axis]);
        key += StrCat(axis == 0 ? "@" : ",", box.slice.offset[axis]);
      }
      if (boxes.size() > 1) piece.set_key(key);
      plan_.files[static_cast<size_t>(rank)].pieces.push_back(
          {group, param, tensor, stored.piece_size() - 1, box.offset});
    }
  }

  void DropEmptyFiles() {
    auto& files = plan_.files;
    std::erase_if(files, [](const CheckpointPlan::File& file) { return file.pieces.empty(); });
    for (size_t index = 0; index < files.size(); ++index) {
      plan_.manifest.add_file()->set_name(
          ShardName(static_cast<int64_t>(index), static_cast<int64_t>(files.size())));
      auto& pieces = files[index].pieces;
      for (const PlannedPiece& piece : pieces) {
        plan_.manifest.mutable_tensor(piece.tensor)
            ->mutable_piece(piece.piece)
            ->set_file(static_cast<int>(index));
      }
      std::stable_sort(pieces.begin(), pieces.end(), [&](const auto& a, const auto& b) {
        return SizeOf(groups_[a.group].dtype) > SizeOf(groups_[b.group].dtype);
      });
    }
  }

  const ParamTable& table_;
  const std::vector<StoredGroup>& groups_;
  MeshShape mesh_;
  const BucketPlan& buckets_;
  CheckpointPlan plan_;
  std::vector<std::vector<BucketPlan::Part>> owned_;  // [param, owner]
};

}  // namespace

CheckpointPlan PlanCheckpoint(const ParamTable& table, const std::vector<StoredGroup>& groups,
                              MeshShape mesh, const BucketPlan& buckets) {
  return Planner(table, groups, mesh, buckets).Plan();
}

int64_t LargestShard(const ParamTable& table, const std::vector<StoredGroup>& groups,
                     MeshShape mesh, const BucketPlan& buckets) {
  // Of each replica's first tensor rank, which also writes what the tensor ranks share.
  std::vector<int64_t> bytes(static_cast<size_t>(mesh.data * mesh.sequence));
  std::vector<int64_t> owned(bytes.size());  // elements
  for (int owner = 0; buckets.sharded() && owner < buckets.owners(); ++owner) {
    for (const BucketPlan::Part& part : buckets.Parts(owner)) {
      owned[static_cast<size_t>(owner)] += part.range.size();
    }
  }
  for (size_t group = 0; group < groups.size(); ++group) {
    const auto each = static_cast<int64_t>(SizeOf(groups[group].dtype));
    const bool sharded = groups[group].owned && buckets.sharded();
    for (size_t i = 0; sharded && i < bytes.size(); ++i) bytes[i] += each * owned[i];
    for (ParamId param = 0; !sharded && param < static_cast<ParamId>(table.specs().size());
         ++param) {
      bytes[static_cast<size_t>(WriterOf(param, group, mesh))] +=
          each * LocalSlice(table.spec(param), mesh.tensor, 0).extent.size();
    }
  }
  return *std::max_element(bytes.begin(), bytes.end());
}

}  // namespace eyrie
