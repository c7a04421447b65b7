#include "launcher/dry_run.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "launcher/agree.h"
#include "launcher/run_lock.h"
#include "launcher/shared_directory.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// Directories that a test creates, removed when it ends; innermost first.
struct Created {
  std::vector<fs::path> directories;
  ~Created() {
    std::error_code ignored;  // another rank may have been faster
    for (const fs::path& directory : directories) fs::remove(directory, ignored);
  }
};

// Writes a file of its own there, which finds what permissions alone do not say.
void Probe(const fs::path& directory) {
  std::string name = (directory / ".dry-run-XXXXXX").string();
  const int descriptor = mkstemp(name.data());
  if (descriptor < 0) {
    ThrowBadInput("run.directory: cannot write in ", directory.string(), ": ",
                  std::strerror(errno));
  }
  const bool written = write(descriptor, "eyrie\n", 6) == 6;
  const int error = errno;
  close(descriptor);
  unlink(name.c_str());
  if (!written) {
    ThrowBadInput("run.directory: cannot write in ", directory.string(), ": ",
                  std::strerror(error));
  }
}

}  // namespace

void CheckRunDirectory(const fs::path& directory, Communicator& world) {
  Created created;
  // All look before any creates.
  Collectively(world, [&] {
    std::error_code error;
    for (fs::path path = fs::absolute(directory);
         !fs::exists(path, error) && path.has_relative_path(); path = path.parent_path()) {
      created.directories.push_back(path);
    }
  });
  Collectively(world, [&] {
    std::error_code error;
    fs::create_directories(directory, error);
    if (error) {
      ThrowBadInput("run.directory: cannot create ", directory.string(), ": ", error.message());
    }
  });
  RequireShared(directory, world);
  Collectively(world, [&] {
    std::error_code error;
    RequireUnlocked(directory);
    Probe(directory);
    for (const char* folder : {"checkpoints", "logs"}) {
      if (fs::exists(directory / folder, error)) Probe(directory / folder);
    }
  });
}

}  // namespace eyrie
