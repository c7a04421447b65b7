// The configuration files of the repository, for tests.
#pragma once

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "configs/schema/config.pb.h"

namespace eyrie {

struct ConfigFile {
  std::string name;  // e.g. "griffin/1.3b"
  std::string text;
  config::Config config;
};

inline ConfigFile ReadConfigFile(const std::string& name) {
  ConfigFile file{name, "", {}};
  std::ifstream in(EYRIE_SOURCE_DIR "/configs/" + name + ".textproto");
  EXPECT_TRUE(in) << name;
  file.text.assign(std::istreambuf_iterator<char>(in), {});
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(file.text, &file.config)) << name;
  return file;
}

// All models, in order of name.
inline std::vector<ConfigFile> ReadConfigFiles() {
  const std::filesystem::path root = EYRIE_SOURCE_DIR "/configs";
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".textproto") continue;
    if (entry.path().parent_path().filename() == "hardware") continue;
    names.push_back(entry.path().lexically_relative(root).replace_extension("").string());
  }
  std::sort(names.begin(), names.end());
  std::vector<ConfigFile> files;
  for (const std::string& name : names) files.push_back(ReadConfigFile(name));
  return files;
}

}  // namespace eyrie
