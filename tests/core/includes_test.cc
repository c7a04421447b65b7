// Includes point one way: launcher -> layers -> {parallel, kernels, configs} -> core.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>

namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"core", {}},
    {"configs", {}},
    {"kernels", {"core"}},
    {"parallel", {"core"}},
    {"layers", {"core", "configs", "kernels", "parallel"}},
    {"launcher", {"core", "configs", "kernels", "parallel", "layers"}},
};

bool IsSource(const fs::path& path) {
  static const std::set<std::string> extensions = {".h", ".cc", ".cu", ".cuh", ".proto"};
  return extensions.contains(path.extension().string());
}

// The path in a line `#include "path"` or `import "path";`, or empty.
std::string Quoted(const std::string& line) {
  const size_t start = line.find_first_not_of(" \t");
  if (start == std::string::npos) return "";
  size_t word = start;
  if (line[start] == '#') word = line.find_first_not_of(" \t", start + 1);
  if (word == std::string::npos) return "";
  if (line.compare(word, 7, "include") != 0 && line.compare(word, 6, "import") != 0) return "";
  const size_t begin = line.find('"', word);
  const size_t end = begin == std::string::npos ? begin : line.find('"', begin + 1);
  return end == std::string::npos ? "" : line.substr(begin + 1, end - begin - 1);
}

TEST(Includes, PointOneWay) {
  const fs::path root = EYRIE_SOURCE_DIR;
  for (const auto& [folder, allowed] : kMayInclude) {
    ASSERT_TRUE(fs::is_directory(root / folder)) << folder;
    int files = 0;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (!entry.is_regular_file() || !IsSource(entry.path())) continue;
      ++files;
      std::ifstream in(entry.path());
      ASSERT_TRUE(in) << entry.path();
      int number = 0;
      for (std::string line; std::getline(in, line);) {
        ++number;
        const std::string path = Quoted(line);
        if (path.empty()) continue;
        const std::string target = path.substr(0, path.find('/'));
        EXPECT_TRUE(target == folder || allowed.contains(target))
            << entry.path().string() << ":" << number << " includes " << path;
        // What is not generated is named by its path from the root.
        EXPECT_TRUE(fs::exists(root / path) || path.ends_with(".pb.h"))
            << entry.path().string() << ":" << number << " includes " << path;
      }
    }
    EXPECT_GT(files, 0) << folder;
  }
}

// A folder that the table above does not know would go unchecked.
TEST(Includes, EverySourceFolderIsKnown) {
  const std::set<std::string> others = {"tests", "tools", "docs", "data", "runs"};
  for (const auto& entry : fs::directory_iterator(EYRIE_SOURCE_DIR)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_directory() || name.starts_with(".") || name.starts_with("build")) continue;
    if (others.contains(name) || kMayInclude.contains(name)) continue;
    for (const auto& file : fs::recursive_directory_iterator(entry.path())) {
      EXPECT_FALSE(file.is_regular_file() && IsSource(file.path())) << file.path();
    }
  }
}

}  // namespace
