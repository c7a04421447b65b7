// The fields of a config.json, or of another JSON object from a Hugging Face folder. All errors are
// kBadInput, one line naming the file and the field.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"

namespace eyrie {

// A piece of a file, as JSON, fit for a line of an error message.
std::string ToLine(const nlohmann::json& value);

class HuggingFaceConfig {
 public:
  // Throws if `path` is missing or not a JSON object.
  explicit HuggingFaceConfig(const std::filesystem::path& path);

  const std::string& path() const { return path_; }
  // There and not null, which everywhere else means the same as absent.
  bool Has(const std::string& name) const;
  // The value of a field, or what stands for it where it is absent. A size is positive and at most
  // 2^24.
  int64_t Size(const std::string& name, int64_t absent) const;
  double Number(const std::string& name, double absent) const;
  std::string Text(const std::string& name, const std::string& absent) const;
  std::vector<std::string> Texts(const std::string& name, std::vector<std::string> absent) const;
  // The object under `name`, whose fields are named "name.field" in errors; an empty one if absent.
  HuggingFaceConfig Object(const std::string& name) const;
  const nlohmann::json& json() const { return json_; }

  // A field that is there must have this value: Eyrie knows no other.
  void Require(const std::string& name, const nlohmann::json& only) const;
  // "FILE: NAME = VALUE: why"
  template <class... Parts>
  [[noreturn]] void Refuse(const std::string& name, const Parts&... why) const {
    ThrowBadInput(path_, ": ", prefix_, name, Has(name) ? " = " + ToLine(json_.at(name)) : "", ": ",
                  why...);
  }

 private:
  HuggingFaceConfig(std::string path, std::string prefix, nlohmann::json json);

  std::string path_;
  std::string prefix_;  // of the fields' names
  nlohmann::json json_;
};

}  // namespace eyrie
