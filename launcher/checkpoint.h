// Checkpoints (docs/checkpoints.md): global tensors cut into the pieces that ranks hold. A
// checkpoint is written beside its place and renamed whole, so one that exists is complete; any
// layout loads any checkpoint.
//
// The group "" holds the parameters in full precision: masters where a run has them, otherwise the
// values themselves. Other groups are stored in the type they have in memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.pb.h"
#include "launcher/manifest.h"
#include "parallel/mesh.h"
#include "parallel/param_store.h"

namespace eyrie {

// How far training has come.
struct Position {
  int64_t step = 0;     // optimiser steps done
  int64_t samples = 0;  // sequences drawn
  int64_t tokens = 0;   // tokens trained on
};

// A flat buffer laid out like the ParamStore, or like what this rank owns of it (with ZeRO a
// share). Its tensors are stored under the parameters' names with `prefix` before them:
// {"", store.masters(), true}, {"adamw.m/", m, true}, {"adamw.v/", v, true}. On any device.
struct NamedFlat {
  std::string prefix;
  Tensor flat;
  bool owned = false;

  // The bytes from element `offset` on.
  char* At(int64_t offset) const;
};

// Throws unless `groups` are laid out as they say.
void CheckGroups(const ParamStore& store, const std::vector<NamedFlat>& groups);

// Fills `groups` of a store of any layout. Reads and checks only what this rank needs. Moments that
// a checkpoint of step 0 does not hold start from zero. Call inside Collectively. Throws kBadInput
// naming the file that is missing or damaged, or the tensor that does not fit the store.
Position LoadCheckpoint(const std::filesystem::path& checkpoint, const config::Manifest& manifest,
                        const ParamStore& store, const std::vector<NamedFlat>& groups);

// The same of the parameters alone, into the store's values: for inference.
void LoadParameters(const std::filesystem::path& checkpoint, const config::Manifest& manifest,
                    const ParamStore& store);

// "step-00000100"
std::string CheckpointName(int64_t step);

// Removes the oldest checkpoints beyond `keep` (0: keeps all), and what interrupted saves left.
// Call on one rank, while no save is under way. Throws, in the end, of the first that it could not
// remove.
void PruneCheckpoints(const std::filesystem::path& directory, int64_t keep);

// The complete checkpoint of the highest step, if `directory` (a checkpoints/) holds or is any.
std::optional<std::filesystem::path> NewestCheckpoint(const std::filesystem::path& directory);

// What a user means by `path`: a checkpoint itself, or the newest one of a run directory or of a
// checkpoints folder. Throws kBadInput naming `path` if there is none.
std::filesystem::path FindCheckpoint(const std::filesystem::path& path);

struct FoundCheckpoint {
  std::filesystem::path path;
  config::Manifest manifest;
};
// What `find` returns on the root, for all ranks: whatever they see of a file system, they go on
// from the same checkpoint. Collective; throws an AgreedError of what `find` and ReadManifest
// throw.
std::optional<FoundCheckpoint> FindOnRoot(
    Communicator& world, const std::function<std::optional<std::filesystem::path>()>& find);

struct CheckpointSize {
  int64_t files = 0;  // the manifest included
  int64_t tensors = 0;
  int64_t bytes = 0;  // of all files
};
// Reads every byte. Throws kBadInput naming the first file that is not as it was written.
CheckpointSize VerifyCheckpoint(const std::filesystem::path& checkpoint);

}  // namespace eyrie
