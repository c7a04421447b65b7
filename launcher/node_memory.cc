#include "launcher/node_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace eyrie {

namespace fs = std::filesystem;

double NodeMemory(const fs::path& root) {
  double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  // A line is "hierarchy:controllers:group"; version 2 names no controllers.
  std::ifstream lines(root / "proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && controllers != "memory") continue;
    const fs::path hierarchy = root / "sys/fs/cgroup" / controllers;
    // Every group around this process's own limits it too.
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    while (true) {
      double limit = 0;  // the file says "max" where there is none
      const char* name = controllers.empty() ? "memory.max" : "memory.limit_in_bytes";
      if (std::ifstream(hierarchy / group / name) >> limit) bytes = std::min(bytes, limit);
      if (group.empty()) break;
      group = group.parent_path();
    }
  }
  return bytes;
}

}  // namespace eyrie
