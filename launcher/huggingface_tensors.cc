#include "launcher/huggingface_tensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <system_error>

#include "launcher/huggingface_config.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

// IEEE binary16, which is exact in float32.
float FromHalf(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction x 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

float FromBFloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

template <float (*widen)(uint16_t)>
void Widen(const std::byte* from, size_t elements, float* to) {
  for (size_t i = 0; i < elements; ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * i, sizeof bits);
    to[i] = widen(bits);
  }
}

bool IsFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

std::string ShapeText(const std::vector<int64_t>& extents) { return ToLine(extents); }

}  // namespace

HuggingFaceTensors::HuggingFaceTensors(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) ThrowBadInput(folder.string(), ": no such directory");
  if (fs::exists(folder / kSingle, error)) {
    source_ = (folder / kSingle).string();
    files_.push_back(std::make_unique<SafetensorsFile>(folder / kSingle));
    Add(*files_.back());
    return;
  }
  if (!fs::exists(folder / kIndex, error)) {
    ThrowBadInput(folder.string(), ": holds neither ", kSingle, " nor ", kIndex);
  }
  const HuggingFaceConfig index(folder / kIndex);
  source_ = index.path();
  if (!index.Has("weight_map")) index.Refuse("weight_map", "is missing");
  std::map<std::string, std::set<std::string>> expected;  // of each file
  const HuggingFaceConfig weights = index.Object("weight_map");
  for (const auto& item : weights.json().items()) {
    if (!item.value().is_string() || !IsFileName(item.value().get<std::string>())) {
      weights.Refuse(item.key(), "not the name of a file");
    }
    expected[item.value().get<std::string>()].insert(item.key());
  }
  for (const auto& [name, tensors] : expected) {
    files_.push_back(std::make_unique<SafetensorsFile>(folder / name));
    const SafetensorsFile& file = *files_.back();
    for (const std::string& tensor : tensors) {
      if (file.Find(tensor) == nullptr) {
        ThrowBadInput(file.path(), ": no tensor ", ToLine(tensor), ", which ", source_, " names");
      }
    }
    for (const auto& entry : file.entries()) {
      if (!tensors.contains(entry.name)) {
        ThrowBadInput(file.path(), ": tensor ", ToLine(entry.name), " is not in ", source_);
      }
    }
    Add(file);
  }
}

void HuggingFaceTensors::Add(const SafetensorsFile& file) {
  for (const auto& entry : file.entries()) tensors_[entry.name] = {&file, &entry};
}

const HuggingFaceTensors::Place& HuggingFaceTensors::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) ThrowBadInput(source_, ": no tensor ", ToLine(name));
  return found->second;
}

void HuggingFaceTensors::Check(const std::string& name, const Shape& shape) const {
  const auto& [file, entry] = Find(name);
  const std::string& type = entry->type;
  if (type != "F32" && type != "BF16" && type != "F16") {
    ThrowBadInput(file->path(), ": tensor ", ToLine(name), " is ", type, ", not F32, BF16 or F16");
  }
  bool same = static_cast<int>(entry->shape.size()) == shape.rank();
  for (int axis = 0; same && axis < shape.rank(); ++axis) {
    same = entry->shape[static_cast<size_t>(axis)] == shape[axis];
  }
  if (!same) {
    ThrowBadInput(file->path(), ": tensor ", ToLine(name), " is ", ShapeText(entry->shape),
                  ", not ", shape.ToString());
  }
}

void HuggingFaceTensors::RequireOnly(const std::vector<std::string>& names) const {
  const std::set<std::string> known(names.begin(), names.end());
  for (const auto& [name, place] : tensors_) {
    if (!known.contains(name)) {
      ThrowBadInput(place.file->path(), ": tensor ", ToLine(name), " is not part of the model");
    }
  }
}

void HuggingFaceTensors::RequireEqual(const std::string& name, const std::string& other) const {
  const Place &a = Find(name), &b = Find(other);
  const auto bytes_a = a.file->Bytes(*a.entry), bytes_b = b.file->Bytes(*b.entry);
  if (a.entry->type != b.entry->type || a.entry->shape != b.entry->shape ||
      !std::equal(bytes_a.begin(), bytes_a.end(), bytes_b.begin(), bytes_b.end())) {
    ThrowBadInput(a.file->path(), ": tensor ", ToLine(name), " differs from ", ToLine(other),
                  ", but the two must be one");
  }
}

const float* HuggingFaceTensors::Read(const std::string& name) {
  const auto& [file, entry] = Find(name);
  const auto bytes = file->Bytes(*entry);
  const size_t elements = bytes.size() / (entry->type == "F32" ? 4 : 2);
  if (elements * sizeof(float) > buffer_.bytes()) buffer_ = Buffer(elements * sizeof(float));
  auto* to = static_cast<float*>(buffer_.data());
  if (entry->type == "F32") {
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
  } else if (entry->type == "BF16") {
    Widen<FromBFloat16>(bytes.data(), elements, to);
  } else {
    Widen<FromHalf>(bytes.data(), elements, to);
  }
  return to;
}

void TransposeMatrices(int64_t count, int64_t rows, int64_t columns, const float* from, float* to) {
  for (int64_t matrix = 0; matrix < count; ++matrix) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        to[column * rows + row] = from[row * columns + column];
      }
    }
    from += rows * columns;
    to += rows * columns;
  }
}

}  // namespace eyrie
