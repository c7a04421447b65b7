#include "launcher/shared_directory.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "launcher/agree.h"
#include "launcher/host_name.h"
#include "parallel/text_messages.h"

namespace eyrie {

void RequireShared(const std::filesystem::path& directory, Communicator& world) {
  if (world.size() == 1) return;
  std::string name;  // of the root's file
  Collectively(world, [&] {
    if (world.rank() != 0) return;
    name = (directory / ".shared-XXXXXX").string();
    const int descriptor = mkstemp(name.data());
    if (descriptor < 0) {
      ThrowBadInput("run.directory: cannot write in ", directory.string(), ": ",
                    std::strerror(errno));
    }
    close(descriptor);
  });
  const std::string created = BroadcastText(world, name), host = BroadcastText(world, HostName());
  const bool seen = access(created.c_str(), F_OK) == 0;
  world.Barrier();
  if (world.rank() == 0) unlink(name.c_str());
  Collectively(world, [&] {
    if (seen) return;
    ThrowBadInput("run.directory: ", directory.string(), " on ", HostName(),
                  " is not the directory that the first rank sees, on ", host,
                  ": all ranks must share it");
  });
}

}  // namespace eyrie
