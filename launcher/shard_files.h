// The shards of a checkpoint: which rank writes which pieces of which tensors, and reading any
// part of a tensor back.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "configs/schema/manifest.pb.h"
#include "core/param_table.h"
#include "core/safetensors.h"
#include "parallel/bucket_plan.h"
#include "parallel/mesh.h"
#include "parallel/shard.h"

namespace eyrie {

// One tensor for every parameter: the parameters themselves, or a moment of the optimiser.
struct StoredGroup {
  std::string prefix;  // of the names
  DType dtype = DType::kF32;
  bool owned = false;  // each rank has only what it owns (BucketPlan::Part), not its whole slices
};

struct PlannedPiece {
  size_t group = 0;
  ParamId param = 0;
  int tensor = 0, piece = 0;  // indices into the manifest: tensor(tensor).piece(piece)
  int64_t offset = 0;         // elements, into the flat buffer of the rank that writes it
};

// The files that the ranks of a mesh write, at most one a rank. Every tensor is written once: its
// pieces by the tensor ranks, or tensor rank 0 alone if replicated. Among the replicas (data x
// sequence) the tensors take turns; of tensors that are shared out each replica writes what it
// owns, as boxes.
struct CheckpointPlan {
  struct File {
    int rank = 0;  // in the world
    std::vector<PlannedPiece> pieces;
  };
  config::Manifest manifest;  // complete but for sizes and checksums
  std::vector<File> files;    // as in manifest.file()
};

CheckpointPlan PlanCheckpoint(const ParamTable& table, const std::vector<StoredGroup>& groups,
                              MeshShape mesh, const BucketPlan& buckets);
// The most bytes of pieces in a file of that plan, without making it.
int64_t LargestShard(const ParamTable& table, const std::vector<StoredGroup>& groups,
                     MeshShape mesh, const BucketPlan& buckets);

// The size of a piece.
size_t BytesOf(const CheckpointPlan& plan, const PlannedPiece& piece);

// Writes file `index` of the plan into `directory` and puts its size and checksums into the plan's
// manifest. source(piece) is the piece's bytes, needed until the next call.
using PieceSource = std::function<const void*(const PlannedPiece&)>;
void WriteShard(const std::filesystem::path& directory, size_t index, const PieceSource& source,
                CheckpointPlan& plan);

// Writes a file of another kind into a checkpoint and adds it to the manifest.
void AddFile(const std::filesystem::path& directory, const std::string& name,
             std::span<const std::byte> bytes, config::Manifest& manifest);

// Reads the files of a checkpoint and checks all it touches against the manifest. Throws kBadInput
// naming the file that is missing or damaged.
class ShardReader {
 public:
  // `manifest` has been checked, and outlives the reader.
  ShardReader(std::filesystem::path checkpoint, const config::Manifest& manifest);

  // The index of a tensor in the manifest. Throws kBadInput, naming it, if it is missing or has
  // another type or shape.
  int Find(const std::string& name, DType dtype, const Shape& shape) const;
  // Copies a box of a tensor to `target`, contiguous, checking all of each piece it takes from.
  void Read(int tensor, const Slice& box, void* target);
  // Reads every byte of a file.
  void VerifyFile(int file);

 private:
  const SafetensorsFile& Open(int file);
  // Where a piece lies in its file.
  const SafetensorsFile::Entry& EntryOf(int tensor, int piece);
  // The bytes of a piece, checked.
  const std::byte* Piece(int tensor, int piece);
  // Copies a whole piece, checked on the way.
  void ReadPiece(int tensor, int piece, std::byte* target);
  void CheckPiece(int tensor, int piece, uint64_t checksum) const;
  std::string PathOf(int file) const;

  std::filesystem::path checkpoint_;
  const config::Manifest& manifest_;
  std::map<std::string, int> tensors_;
  std::vector<std::vector<std::pair<int, int>>> pieces_;  // of each file: tensor, piece
  std::vector<std::unique_ptr<SafetensorsFile>> open_;
  std::map<std::pair<int, int>, const std::byte*> checked_;
};

}  // namespace eyrie
