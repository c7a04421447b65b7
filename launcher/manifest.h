// The manifest of a checkpoint: reading, writing and checking manifest.textproto.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "configs/schema/manifest.pb.h"
#include "core/dtype.h"
#include "parallel/shard.h"

namespace eyrie {

inline constexpr char kManifestName[] = "manifest.textproto";
inline constexpr char kTokenizerName[] = "tokenizer.model";
inline constexpr int kCheckpointFormat = 1;

// Reads and checks a checkpoint's manifest: its checksum and format version, and that the pieces
// of every tensor tile it. Throws kBadInput naming the file.
config::Manifest ReadManifest(const std::filesystem::path& checkpoint);

// Writes it, with its checksum, into `checkpoint`, and waits until it is on disk.
void WriteManifest(const std::filesystem::path& checkpoint, const config::Manifest& manifest);

// What MakeTokenizer takes to get the tokenizer of a checkpoint: its own copy of the model if it
// carries one, so that it can be moved to other machines.
std::string TokenizerOf(const std::filesystem::path& checkpoint, const config::Manifest& manifest);

// The group that a tensor belongs to, "" or such as "adamw.m/": what comes before the name of its
// parameter.
std::string GroupOf(const config::StoredTensor& tensor);

// Parts of a checked manifest: a stored tensor's type, its box from the origin, that of one of its
// pieces, and the key of this in its file.
DType DTypeOfStored(const config::StoredTensor& tensor);
Slice WholeOf(const config::StoredTensor& tensor);
Slice SliceOf(const config::Piece& piece);
const std::string& KeyOf(const config::StoredTensor& tensor, const config::Piece& piece);

// "model-00002-of-00004.safetensors"
std::string ShardName(int64_t index, int64_t count);
bool IsShard(const config::StoredFile& file);

}  // namespace eyrie
