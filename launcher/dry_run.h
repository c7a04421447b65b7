// What `eyrie train --dry-run` checks beyond what a run checks before its first step.
#pragma once

#include <filesystem>

#include "parallel/communicator.h"

namespace eyrie {

// Checks that every rank can write into a run's directory and that no run does now, and leaves
// nothing behind: directories that had to be created are removed. Collective over the job's ranks;
// throws kBadInput.
void CheckRunDirectory(const std::filesystem::path& directory, Communicator& world);

}  // namespace eyrie
