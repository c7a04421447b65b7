// Whether all ranks of a job, on whatever machines, see one and the same directory.
#pragma once

#include <filesystem>

#include "parallel/communicator.h"

namespace eyrie {

// Throws an AgreedError, kBadInput naming `run.directory` and a host, unless all ranks see what the
// root creates in `directory`. It exists on each; nothing stays behind. Collective.
void RequireShared(const std::filesystem::path& directory, Communicator& world);

}  // namespace eyrie
