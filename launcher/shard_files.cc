#include "launcher/shard_files.h"

#include <algorithm>
#include <system_error>

#include "core/checksum.h"
#include "launcher/manifest.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

void CheckSize(const std::string& path, int64_t expected) {
  std::error_code error;  // a missing file is reported when it is opened
  const auto size = fs::file_size(path, error);
  if (!error && size != static_cast<uintmax_t>(expected)) {
    ThrowBadInput(path, ": damaged: it has ", size, " bytes instead of ", expected);
  }
}

}  // namespace

size_t BytesOf(const CheckpointPlan& plan, const PlannedPiece& piece) {
  const auto& stored = plan.manifest.tensor(piece.tensor);
  return static_cast<size_t>(SliceOf(stored.piece(piece.piece)).extent.size()) *
         SizeOf(DTypeOfStored(stored));
}

void WriteShard(const fs::path& directory, size_t index, const PieceSource& source,
                CheckpointPlan& plan) {
  const auto& pieces = plan.files[index].pieces;
  std::vector<SafetensorsSpec> specs;
  for (const PlannedPiece& piece : pieces) {
    const auto& stored = plan.manifest.tensor(piece.tensor);
    const auto& part = stored.piece(piece.piece);
    specs.push_back({KeyOf(stored, part), DTypeOfStored(stored), SliceOf(part).extent});
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

void AddFile(const fs::path& directory, const std::string& name, std::span<const std::byte> bytes,
             config::Manifest& manifest) {
  OutputFile to(directory / name);
  to.Write(bytes.data(), bytes.size());
  to.Finish();
  auto& file = *manifest.add_file();
  file.set_name(name);
  file.set_size(to.size());
  file.set_header_xxh3(Checksum(bytes.data(), bytes.size()));
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
    fail("is ", WholeOf(stored).extent.ToString(), ", not ", shape.ToString());
  }
  return found->second;
}

void ShardReader::Read(int tensor, const Slice& box, void* target) {
  const auto& stored = manifest_.tensor(tensor);
  for (int piece = 0; piece < stored.piece_size(); ++piece) {
    const Slice slice = SliceOf(stored.piece(piece));
    const auto part = Intersect(slice, box);
    if (!part) continue;
    if (slice.offset == box.offset && slice.extent == box.extent) {
      ReadPiece(tensor, piece, static_cast<std::byte*>(target));
    } else {
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

const SafetensorsFile::Entry& ShardReader::EntryOf(int tensor, int piece) {
  const auto& stored = manifest_.tensor(tensor);
  const auto& part = stored.piece(piece);
  const SafetensorsFile& shard = Open(part.file());
  const std::string& key = KeyOf(stored, part);
  const SafetensorsFile::Entry* entry = shard.Find(key);
  if (entry == nullptr) ThrowBadInput(shard.path(), ": no tensor ", key);
  if (entry->type != stored.dtype() || !std::equal(entry->shape.begin(), entry->shape.end(),
                                                   part.shape().begin(), part.shape().end())) {
    ThrowBadInput(shard.path(), ": tensor ", key, " is not the ", stored.dtype(), " ",
                  SliceOf(part).extent.ToString(), " of the manifest");
  }
  return *entry;
}

void ShardReader::CheckPiece(int tensor, int piece, uint64_t checksum) const {
  const auto& stored = manifest_.tensor(tensor);
  const auto& part = stored.piece(piece);
  if (checksum != part.xxh3()) {
    ThrowBadInput(PathOf(part.file()), ": damaged: tensor ", KeyOf(stored, part),
                  " does not match its checksum");
  }
}

const std::byte* ShardReader::Piece(int tensor, int piece) {
  const std::byte*& checked = checked_[{tensor, piece}];
  if (checked != nullptr) return checked;
  const SafetensorsFile::Entry& entry = EntryOf(tensor, piece);
  const auto bytes = Open(manifest_.tensor(tensor).piece(piece).file()).Bytes(entry);
  CheckPiece(tensor, piece, Checksum(bytes.data(), bytes.size()));
  return checked = bytes.data();
}

void ShardReader::ReadPiece(int tensor, int piece, std::byte* target) {
  // Few enough bytes to be still in a cache for their checksum.
  constexpr size_t kAtOnce = size_t{1} << 20;
  const SafetensorsFile::Entry& entry = EntryOf(tensor, piece);
  const SafetensorsFile& shard = Open(manifest_.tensor(tensor).piece(piece).file());
  RunningChecksum checksum;
  for (size_t begin = 0; begin < entry.bytes; begin += kAtOnce) {
    const std::span<std::byte> to(target + begin, std::min(kAtOnce, entry.bytes - begin));
    shard.ReadBytes(entry, begin, to);
    checksum.Add(to.data(), to.size());
  }
  CheckPiece(tensor, piece, checksum.value());
}

std::string ShardReader::PathOf(int file) const {
  return (checkpoint_ / manifest_.file(file).name()).string();
}

}  // namespace eyrie
