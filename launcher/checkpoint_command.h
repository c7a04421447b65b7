// `eyrie checkpoint`: looking at checkpoints, checking them, and changing their layout.
#pragma once

#include <filesystem>
#include <iosfwd>

namespace CLI {
class App;
}

namespace eyrie {

// Registers the subcommand. Errors are thrown by the parse that runs it.
void AddCheckpointCommand(CLI::App& app);

// What `inspect` prints: the manifest for human eyes, and files that are missing or of a wrong
// size. Reads only the manifest.
void PrintCheckpoint(const std::filesystem::path& checkpoint, std::ostream& out);

}  // namespace eyrie
