// What a fuzz target offers, and what they share. The rule that each of them tests: any input is
// either read, or refused with an Error of code kBadInput. A crash, a hang, another exception or a
// memory error fails.
//
// With clang, the preset `fuzz` links targets with libFuzzer, which looks for such inputs guided by
// coverage. With any compiler they link with replay.cc instead, an ordinary test that runs the
// seeds and random changes of them.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace eyrie {

// Small valid inputs to start from; each target defines them.
std::vector<std::string> FuzzSeeds();

// A folder in memory for the files of one process, removed when it ends.
class FuzzFolder {
 public:
  FuzzFolder() {
    std::string pattern = "/dev/shm/eyrie-fuzz-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~FuzzFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  FuzzFolder(const FuzzFolder&) = delete;
  FuzzFolder& operator=(const FuzzFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  std::filesystem::path Write(const std::string& name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string Content(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Runs body(); bad input is fine, anything else ends the process.
template <class Body>
int AllowBadInput(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadInput) {
      std::fprintf(stderr, "not bad input: %s\n", error.what());
      std::abort();
    }
  }
  return 0;
}

}  // namespace eyrie
