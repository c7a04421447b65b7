// What this machine calls itself.
#pragma once

#include <unistd.h>

#include <string>

namespace eyrie {

inline std::string HostName() {
  char host[256] = {};
  if (gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') return "localhost";
  return host;
}

}  // namespace eyrie
