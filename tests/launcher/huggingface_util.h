// What the tests of Hugging Face folders share: the golden models, and folders that differ from
// them in one thing.
#pragma once

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "launcher/huggingface.h"
#include "tests/launcher/temp_folder.h"

namespace eyrie {

// A tensor of any type, as a file holds it.
struct RawTensor {
  std::string type;
  std::vector<int64_t> shape;
  std::string bytes;
  bool operator==(const RawTensor&) const = default;
};
using RawTensors = std::map<std::string, RawTensor>;

// Adds the tensors of a file.
inline void ReadRaw(const std::filesystem::path& path, RawTensors& tensors) {
  const SafetensorsFile file(path);
  for (const auto& entry : file.entries()) {
    const auto bytes = file.Bytes(entry);
    const bool fresh =
        tensors
            .try_emplace(
                entry.name,
                RawTensor{entry.type, entry.shape,
                          std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())})
            .second;
    EXPECT_TRUE(fresh) << entry.name;
  }
}

// Those of all files of a folder.
inline RawTensors ReadFolder(const std::filesystem::path& folder) {
  RawTensors tensors;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") ReadRaw(entry.path(), tensors);
  }
  return tensors;
}

inline std::string RawFile(const RawTensors& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.type},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

inline std::filesystem::path Golden(const std::string& name,
                                    const std::string& family = "recurrent_gemma") {
  return std::filesystem::path(EYRIE_SOURCE_DIR) / "tests/golden" / family / name;
}

class HuggingFaceTest : public TempFolderTest {
 protected:
  // A copy of golden model `name`.
  std::filesystem::path CopyOf(const std::string& name,
                               const std::string& family = "recurrent_gemma") const {
    const std::filesystem::path folder = Path("hf");
    std::filesystem::remove_all(folder);
    std::filesystem::copy(Golden(name, family), folder);
    return folder;
  }
  // The small golden model with other tensors, or another config.json.
  std::filesystem::path WithTensors(const std::function<void(RawTensors&)>& edit) const {
    const auto folder = CopyOf("small");
    RawTensors tensors = ReadFolder(folder);
    edit(tensors);
    Write("hf/model.safetensors", RawFile(tensors));
    return folder;
  }
  std::filesystem::path WithConfig(const nlohmann::json& patch,
                                   const std::string& family = "recurrent_gemma") const {
    const auto folder = CopyOf("small", family);
    nlohmann::json config = nlohmann::json::parse(Slurp(folder / "config.json"));
    config.merge_patch(patch);  // null removes a field
    Write("hf/config.json", config.dump());
    return folder;
  }

  // The message with which an import is refused; it leaves nothing behind.
  std::string Refused(const std::filesystem::path& folder) const {
    const std::string message = BadInput([&] { ImportHuggingFace(folder, Path("refused/step")); });
    EXPECT_TRUE(!std::filesystem::exists(Path("refused")) ||
                std::filesystem::is_empty(Path("refused")));
    return message;
  }
};

}  // namespace eyrie
