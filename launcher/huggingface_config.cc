#include "launcher/huggingface_config.h"

#include <string_view>
#include <utility>

#include "core/mapped_file.h"

namespace eyrie {
namespace {

constexpr int64_t kLargestSize = int64_t{1} << 24;

nlohmann::json ParseObject(const std::filesystem::path& path) {
  const MappedFile file(path.string());
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  nlohmann::json json;
  try {
    // Copying, comparing and printing a tree take stack for each of its levels.
    constexpr int kDeepest = 32;
    const auto check = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
      if (depth > kDeepest) ThrowBadInput(file.path(), ": nested too deep");
      return true;
    };
    json = nlohmann::json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::parse_error& error) {
    ThrowBadInput(file.path(), ": not valid JSON (byte ", error.byte, ")");
  } catch (const nlohmann::json::exception&) {
    ThrowBadInput(file.path(), ": not valid JSON");
  }
  if (!json.is_object()) ThrowBadInput(file.path(), ": not a JSON object");
  return json;
}

}  // namespace

std::string ToLine(const nlohmann::json& value) {
  constexpr size_t kMost = 200;
  std::string text =
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

HuggingFaceConfig::HuggingFaceConfig(const std::filesystem::path& path)
    : HuggingFaceConfig(path.string(), "", ParseObject(path)) {}

HuggingFaceConfig::HuggingFaceConfig(std::string path, std::string prefix, nlohmann::json json)
    : path_(std::move(path)), prefix_(std::move(prefix)), json_(std::move(json)) {}

bool HuggingFaceConfig::Has(const std::string& name) const {
  const auto found = json_.find(name);
  return found != json_.end() && !found->is_null();
}

int64_t HuggingFaceConfig::Size(const std::string& name, int64_t absent) const {
  if (!Has(name)) return absent;
  const nlohmann::json& value = json_.at(name);
  if (!value.is_number_unsigned()) Refuse(name, "expected a positive integer");
  const uint64_t size = value.get<uint64_t>();
  if (size == 0) Refuse(name, "expected a positive integer");
  if (size > static_cast<uint64_t>(kLargestSize)) Refuse(name, "more than ", kLargestSize);
  return static_cast<int64_t>(size);
}

double HuggingFaceConfig::Number(const std::string& name, double absent) const {
  if (!Has(name)) return absent;
  if (!json_.at(name).is_number()) Refuse(name, "expected a number");
  return json_.at(name).get<double>();
}

std::string HuggingFaceConfig::Text(const std::string& name, const std::string& absent) const {
  if (!Has(name)) return absent;
  if (!json_.at(name).is_string()) Refuse(name, "expected a string");
  return json_.at(name).get<std::string>();
}

std::vector<std::string> HuggingFaceConfig::Texts(const std::string& name,
                                                  std::vector<std::string> absent) const {
  if (!Has(name)) return absent;
  const nlohmann::json& values = json_.at(name);
  std::vector<std::string> texts;
  bool good = values.is_array() && !values.empty();
  for (size_t i = 0; good && i < values.size(); ++i) {
    good = values[i].is_string();
    if (good) texts.push_back(values[i].get<std::string>());
  }
  if (!good) Refuse(name, "expected a list of strings");
  return texts;
}

HuggingFaceConfig HuggingFaceConfig::Object(const std::string& name) const {
  nlohmann::json object = nlohmann::json::object();
  if (Has(name)) object = json_.at(name);
  if (!object.is_object()) Refuse(name, "expected an object");
  return {path_, prefix_ + name + ".", std::move(object)};
}

void HuggingFaceConfig::Require(const std::string& name, const nlohmann::json& only) const {
  if (Has(name) && json_.at(name) != only) Refuse(name, "only ", ToLine(only), " is supported");
}

}  // namespace eyrie
