// Errors carry an exit code and one line that names the field or file at fault.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace eyrie {

// Process exit codes, part of the command-line contract.
enum class ExitCode : int {
  kOk = 0,
  kBadInput = 2,       // a configuration, file or argument is wrong
  kFailed = 3,         // something broke while running
  kInterrupted = 130,  // stopped by SIGINT after saving
  kTerminated = 143,   // stopped by SIGTERM after saving
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// Concatenates anything that can be streamed.
template <class... Parts>
std::string StrCat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// The user's input is at fault: `parts` form one line that names the culprit.
template <class... Parts>
[[noreturn]] void ThrowBadInput(const Parts&... parts) {
  throw Error(ExitCode::kBadInput, StrCat(parts...));
}

// The environment failed (disk, network, memory) while running.
template <class... Parts>
[[noreturn]] void ThrowFailure(const Parts&... parts) {
  throw Error(ExitCode::kFailed, StrCat(parts...));
}

}  // namespace eyrie

// An invariant of the program itself; a failure is a bug, reported with its place.
#define EYRIE_CHECK(condition, ...)                                                           \
  do {                                                                                        \
    if (!(condition)) [[unlikely]] {                                                          \
      ::eyrie::ThrowFailure(__FILE__, ":", __LINE__,                                          \
                            ": check failed: ", #condition __VA_OPT__(, ": ", ) __VA_ARGS__); \
    }                                                                                         \
  } while (false)
