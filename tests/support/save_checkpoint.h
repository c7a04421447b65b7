// Saving in one call.
#pragma once

#include <filesystem>
#include <vector>

#include "launcher/checkpoint_writer.h"

namespace eyrie {

// Begins a save and finishes it, collectively over the mesh.
inline void SaveCheckpoint(const std::filesystem::path& directory, const config::Config& config,
                           const Mesh& mesh, const ParamStore& store,
                           const std::vector<NamedFlat>& groups, const Position& position) {
  CheckpointWriter writer(directory, config, mesh, store);
  writer.Begin(groups, position, /*asynchronous=*/false);
  writer.Finish();
}

}  // namespace eyrie
