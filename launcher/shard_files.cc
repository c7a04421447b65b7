#include "launcher/shard_files.h"

#include <algorithm>
#include <system_error>

#include "core/checksum.h"
#include "launcher/manifest.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& extents) {
  std::string text = "[";
  for (int axis = 0; axis < extents.size(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(extents.Get(axis));
  }
  return text + "]";
}

void CheckSize(const std::string& path, int64_t expected) {
  std::error_code error;  // a missing file is reported when it is opened
  const auto size = fs::file_size(path, error);
  if (!error && size != static_cast<uintmax_t>(expected)) {
    ThrowBadInput(path, ": damaged: it has ", size, " bytes instead of ", expected);
  }
}

}  // namespace

CheckpointPlan PlanCheckpoint(const ParamTable& table, const std::vector<StoredGroup>& groups,
                              MeshShape mesh) {
  CheckpointPlan plan;
  plan.manifest.set_format_version(kCheckpointFormat);
  const int replicas = mesh.data * mesh.sequence;
  std::vector<CheckpointPlan::File> files(static_cast<size_t>(mesh.ranks()));
  for (int rank = 0; rank < mesh.ranks(); ++rank) files[static_cast<size_t>(rank)].rank = rank;

  for (size_t group = 0; group < groups.size(); ++group) {
    for (ParamId param = 0; param < static_cast<ParamId>(table.specs().size()); ++param) {
      const ParamSpec& spec = table.spec(param);
      const int tensor = plan.manifest.tensor_size();
      auto& stored = *plan.manifest.add_tensor();
      stored.set_name(groups[group].prefix + spec.name);
      stored.set_dtype(std::string(Name(groups[group].dtype)));
      for (int axis = 0; axis < spec.shape.rank(); ++axis) stored.add_shape(spec.shape[axis]);
      const int replica =
          static_cast<int>((static_cast<size_t>(param) + group) % static_cast<size_t>(replicas));
      const int parts = spec.shard_axis < 0 ? 1 : mesh.tensor;
      for (int part = 0; part < parts; ++part) {
        const int rank = replica * mesh.tensor + part;
        const Slice slice = LocalSlice(spec, mesh.tensor, part);
        auto& piece = *stored.add_piece();
        piece.set_file(rank);  // for now
        for (int axis = 0; axis < spec.shape.rank(); ++axis) {
          piece.add_offset(slice.offset[axis]);
          piece.add_shape(slice.extent[axis]);
        }
        files[static_cast<size_t>(rank)].pieces.push_back({group, param, tensor, part});
      }
    }
  }

  std::erase_if(files, [](const CheckpointPlan::File& file) { return file.pieces.empty(); });
  for (size_t index = 0; index < files.size(); ++index) {
    plan.manifest.add_file()->set_name(
        ShardName(static_cast<int64_t>(index), static_cast<int64_t>(files.size())));
    auto& pieces = files[index].pieces;
    for (const PlannedPiece& piece : pieces) {
      plan.manifest.mutable_tensor(piece.tensor)
          ->mutable_piece(piece.piece)
          ->set_file(static_cast<int>(index));
    }
    std::stable_sort(pieces.begin(), pieces.end(), [&](const auto& a, const auto& b) {
      return SizeOf(groups[a.group].dtype) > SizeOf(groups[b.group].dtype);
    });
  }
  plan.files = std::move(files);
  return plan;
}

void WriteShard(const fs::path& directory, size_t index, const PieceSource& source,
                CheckpointPlan& plan) {
  const auto& pieces = plan.files[index].pieces;
  std::vector<SafetensorsSpec> specs;
  for (const PlannedPiece& piece : pieces) {
    const auto& stored = plan.manifest.tensor(piece.tensor);
    specs.push_back(
        {stored.name(), DTypeOfStored(stored), SliceOf(stored.piece(piece.piece)).extent});
  }
  auto& file = *plan.manifest.mutable_file(static_cast<int>(index));
  SafetensorsWriter writer(directory / file.name(), std::move(specs));
  for (const PlannedPiece& piece : pieces) writer.Write(source(piece));
  const SafetensorsSummary summary = writer.Finish();
  file.set_size(summary.size);
  file.set_header_xxh3(summary.header_checksum);
  for (size_t i = 0; i < pieces.size(); ++i) {
    plan.manifest.mutable_tensor(pieces[i].tensor)
        ->mutable_piece(pieces[i].piece)
        ->set_xxh3(summary.checksums[i]);
  }
}

void AddFile(const fs::path& directory, const std::string& name, const fs::path& source,
             config::Manifest& manifest) {
  const MappedFile from(source.string());
  OutputFile to(directory / name);
  to.Write(from.bytes().data(), from.bytes().size());
  to.Finish();
  auto& file = *manifest.add_file();
  file.set_name(name);
  file.set_size(to.size());
  file.set_header_xxh3(Checksum(from.bytes().data(), from.bytes().size()));
}

ShardReader::ShardReader(fs::path checkpoint, const config::Manifest& manifest)
    : checkpoint_(std::move(checkpoint)),
      manifest_(manifest),
      pieces_(static_cast<size_t>(manifest.file_size())),
      open_(static_cast<size_t>(manifest.file_size())) {
  for (int tensor = 0; tensor < manifest.tensor_size(); ++tensor) {
    const auto& stored = manifest.tensor(tensor);
    tensors_[stored.name()] = tensor;
    for (int piece = 0; piece < stored.piece_size(); ++piece) {
      pieces_[static_cast<size_t>(stored.piece(piece).file())].emplace_back(tensor, piece);
    }
  }
}

int ShardReader::Find(const std::string& name, DType dtype, const Shape& shape) const {
  const auto fail = [&](const auto&... parts) {
    ThrowBadInput((checkpoint_ / kManifestName).string(), ": tensor ", name, " ", parts...);
  };
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("is missing");
  const auto& stored = manifest_.tensor(found->second);
  if (DTypeOfStored(stored) != dtype) fail("is ", stored.dtype(), ", not ", Name(dtype));
  if (!(WholeOf(stored).extent == shape)) {
    fail("is ", ShapeText(stored.shape()), ", not ", shape.ToString());
  }
  return found->second;
}

void ShardReader::Read(int tensor, const Slice& box, void* target) {
  const auto& stored = manifest_.tensor(tensor);
  for (int piece = 0; piece < stored.piece_size(); ++piece) {
    const Slice slice = SliceOf(stored.piece(piece));
    if (const auto part = Intersect(slice, box)) {
      CopyPart(*part, slice, Piece(tensor, piece), box, target, SizeOf(DTypeOfStored(stored)));
    }
  }
}

void ShardReader::VerifyFile(int file) {
  if (!IsShard(manifest_.file(file))) {
    CheckSize(PathOf(file), manifest_.file(file).size());
    const MappedFile mapped(PathOf(file));
    if (Checksum(mapped.bytes().data(), mapped.bytes().size()) !=
        manifest_.file(file).header_xxh3()) {
      ThrowBadInput(mapped.path(), ": damaged: it does not match its checksum");
    }
    return;
  }
  const auto& pieces = pieces_[static_cast<size_t>(file)];
  const SafetensorsFile& shard = Open(file);
  if (shard.entries().size() != pieces.size()) {
    ThrowBadInput(shard.path(), ": holds ", shard.entries().size(), " tensors instead of ",
                  pieces.size());
  }
  for (const auto& [tensor, piece] : pieces) Piece(tensor, piece);
}

const SafetensorsFile& ShardReader::Open(int file) {
  auto& open = open_[static_cast<size_t>(file)];
  if (open == nullptr) {
    CheckSize(PathOf(file), manifest_.file(file).size());
    auto shard = std::make_unique<SafetensorsFile>(PathOf(file));
    if (Checksum(shard->Header().data(), shard->Header().size()) !=
        manifest_.file(file).header_xxh3()) {
      ThrowBadInput(shard->path(), ": damaged: its header does not match its checksum");
    }
    open = std::move(shard);
  }
  return *open;
}

const std::byte* ShardReader::Piece(int tensor, int piece) {
  const std::byte*& checked = checked_[{tensor, piece}];
  if (checked != nullptr) return checked;
  const auto& stored = manifest_.tensor(tensor);
  const auto& part = stored.piece(piece);
  const SafetensorsFile& shard = Open(part.file());
  const SafetensorsFile::Entry* entry = shard.Find(stored.name());
  if (entry == nullptr) ThrowBadInput(shard.path(), ": no tensor ", stored.name());
  if (entry->type != stored.dtype() || !std::equal(entry->shape.begin(), entry->shape.end(),
                                                   part.shape().begin(), part.shape().end())) {
    ThrowBadInput(shard.path(), ": tensor ", stored.name(), " is not the ", stored.dtype(), " ",
                  ShapeText(part.shape()), " of the manifest");
  }
  const auto bytes = shard.Bytes(*entry);
  if (Checksum(bytes.data(), bytes.size()) != part.xxh3()) {
    ThrowBadInput(shard.path(), ": damaged: tensor ", stored.name(),
                  " does not match its checksum");
  }
  return checked = bytes.data();
}

std::string ShardReader::PathOf(int file) const {
  return (checkpoint_ / manifest_.file(file).name()).string();
}

}  // namespace eyrie
