#include "core/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "core/checksum.h"
#include "core/error.h"

namespace eyrie {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr char kMetadataKey[] = "__metadata__";
constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

// Every element type of whole bytes that the format knows.
struct TypeInfo {
  const char* name;
  uint64_t bytes;
  std::optional<DType> dtype;
};
constexpr TypeInfo kTypes[] = {
    {"F32", 4, DType::kF32}, {"F64", 8, DType::kF64}, {"BF16", 2, DType::kBF16},
    {"I32", 4, DType::kI32}, {"F16", 2, {}},          {"BOOL", 1, {}},
    {"U8", 1, {}},           {"I8", 1, {}},           {"I16", 2, {}},
    {"U16", 2, {}},          {"U32", 4, {}},          {"I64", 8, {}},
    {"U64", 8, {}},          {"F8_E4M3", 1, {}},      {"F8_E5M2", 1, {}},
    {"F8_E8M0", 1, {}},      {"C64", 8, {}},
};

// A name from a file, fit for one line of an error message.
std::string Quote(const std::string& name) {
  return nlohmann::json(name.substr(0, 200))
      .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  }
  return text + "]";
}

// The header as JSON. Refuses what a tree would hide (keys that come twice) or drown in (nesting).
nlohmann::json ParseHeader(const std::string& path, std::string_view text) {
  using Json = nlohmann::json;
  if (text.empty() || text[0] != '{') {
    ThrowBadInput(path, ": not a safetensors file: its header is not a JSON object");
  }
  std::set<std::string> names, fields;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth > 2) ThrowBadInput(path, ": its header is nested too deep");
      if (depth == 1) fields.clear();
    } else if (event == Json::parse_event_t::key) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!(depth == 1 ? names : fields).insert(key).second) {
        ThrowBadInput(path, ": its header holds ", Quote(key), " twice");
      }
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::parse_error& error) {
    ThrowBadInput(path, ": its header is not valid JSON (byte ", kLengthBytes + error.byte, ")");
  } catch (const Json::exception&) {
    ThrowBadInput(path, ": its header is not valid JSON");
  }
}

// One entry of the header, up to where it lies among the others.
SafetensorsFile::Entry ParseEntry(const std::string& path, const std::string& name,
                                  const nlohmann::json& value) {
  const auto fail = [&](const auto&... parts) {
    ThrowBadInput(path, ": tensor ", Quote(name), ": ", parts...);
  };
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    fail("expected dtype, shape and data_offsets");
  }
  const auto &dtype = value["dtype"], &shape = value["shape"], &offsets = value["data_offsets"];
  SafetensorsFile::Entry entry{.name = name};
  if (!dtype.is_string()) fail("dtype is not a string");
  entry.type = dtype.get<std::string>();
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const TypeInfo& info) { return entry.type == info.name; });
  if (type == std::end(kTypes)) fail("unknown dtype ", Quote(entry.type));
  entry.dtype = type->dtype;

  uint64_t bytes = type->bytes;
  if (!shape.is_array()) fail("shape is not a list");
  for (const auto& extent : shape) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > INT64_MAX) {
      fail("a bad extent in its shape");
    }
    entry.shape.push_back(extent.get<int64_t>());
    if (__builtin_mul_overflow(bytes, extent.get<uint64_t>(), &bytes)) fail("its shape overflows");
  }
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned() || offsets[0].get<uint64_t>() > offsets[1].get<uint64_t>()) {
    fail("bad data_offsets");
  }
  entry.offset = offsets[0].get<uint64_t>();
  entry.bytes = offsets[1].get<uint64_t>() - entry.offset;
  if (entry.bytes != bytes) {
    fail(entry.type, " ", ShapeText(entry.shape), " takes ", bytes, " bytes, not ", entry.bytes);
  }
  return entry;
}

SafetensorsMetadata ParseMetadata(const std::string& path, const nlohmann::json& value) {
  SafetensorsMetadata metadata;
  if (!value.is_object()) ThrowBadInput(path, ": its metadata is not an object");
  for (const auto& item : value.items()) {
    if (!item.value().is_string()) {
      ThrowBadInput(path, ": its metadata ", Quote(item.key()), " is not a string");
    }
    metadata[item.key()] = item.value().get<std::string>();
  }
  return metadata;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::vector<SafetensorsSpec> tensors,
                                     const SafetensorsMetadata& metadata)
    : tensors_(std::move(tensors)), file_(path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  size_t offset = 0, last_size = SizeOf(DType::kF64);
  for (const SafetensorsSpec& tensor : tensors_) {
    EYRIE_CHECK(!header.contains(tensor.name) && tensor.name != kMetadataKey, tensor.name);
    EYRIE_CHECK(SizeOf(tensor.dtype) <= last_size, tensor.name, " comes after smaller elements");
    last_size = SizeOf(tensor.dtype);
    auto shape = nlohmann::ordered_json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
    header[tensor.name] = {{"dtype", Name(tensor.dtype)},
                           {"shape", std::move(shape)},
                           {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors start aligned
  const uint64_t length = text.size();
  text.insert(0, reinterpret_cast<const char*>(&length), kLengthBytes);
  summary_.header_checksum = Checksum(text.data(), text.size());
  file_.Write(text.data(), text.size());
}

void SafetensorsWriter::Write(const void* data) {
  EYRIE_CHECK(summary_.checksums.size() < tensors_.size());
  const size_t bytes = tensors_[summary_.checksums.size()].bytes();
  summary_.checksums.push_back(Checksum(data, bytes));
  file_.Write(data, bytes);
}

SafetensorsSummary SafetensorsWriter::Finish() {
  EYRIE_CHECK(summary_.checksums.size() == tensors_.size());
  file_.Finish();
  summary_.size = file_.size();
  return std::move(summary_);
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path.string()) {
  const auto bytes = file_.bytes();
  uint64_t length = 0;
  if (bytes.size() < kLengthBytes) ThrowBadInput(file_.path(), ": too short, or truncated");
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    ThrowBadInput(file_.path(), ": not a safetensors file: a header of ", length, " bytes");
  }
  if (length > bytes.size() - kLengthBytes) {
    ThrowBadInput(file_.path(), ": its header of ", length, " bytes is truncated");
  }
  data_start_ = kLengthBytes + static_cast<size_t>(length);

  const nlohmann::json header = ParseHeader(
      file_.path(),
      {reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, static_cast<size_t>(length)});
  for (const auto& item : header.items()) {
    if (item.key() == kMetadataKey) {
      metadata_ = ParseMetadata(file_.path(), item.value());
    } else {
      entries_.push_back(ParseEntry(file_.path(), item.key(), item.value()));
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  // The tensors fill the rest of the file without gaps or overlaps.
  const uint64_t data_bytes = bytes.size() - data_start_;
  uint64_t end = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.offset != end) {
      ThrowBadInput(file_.path(), ": tensor ", Quote(entry.name), ": starts at byte ", entry.offset,
                    " of the data instead of ", end);
    }
    if (entry.bytes > data_bytes - end) {
      ThrowBadInput(file_.path(), ": tensor ", Quote(entry.name),
                    ": ends beyond the file, which is truncated");
    }
    end += entry.bytes;
    entry.offset += data_start_;
    index_[entry.name] = i;
  }
  if (end != data_bytes) {
    ThrowBadInput(file_.path(), ": ", data_bytes - end, " bytes too long");
  }
}

const SafetensorsFile::Entry* SafetensorsFile::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

std::span<const std::byte> SafetensorsFile::Bytes(const Entry& entry) const {
  return file_.bytes().subspan(static_cast<size_t>(entry.offset), static_cast<size_t>(entry.bytes));
}

void SafetensorsFile::Read(const std::string& name, const Tensor& to) const {
  EYRIE_CHECK(to.device == Device::kCpu);
  const Entry* entry = Find(name);
  if (entry == nullptr) ThrowBadInput(path(), ": no tensor ", Quote(name));
  if (entry->dtype != to.dtype) {
    ThrowBadInput(path(), ": tensor ", Quote(name), " is ", entry->type, ", not ",
                  eyrie::Name(to.dtype));
  }
  bool same = static_cast<int>(entry->shape.size()) == to.shape.rank();
  for (int axis = 0; same && axis < to.shape.rank(); ++axis) {
    same = entry->shape[static_cast<size_t>(axis)] == to.shape[axis];
  }
  if (!same) {
    ThrowBadInput(path(), ": tensor ", Quote(name), " is ", ShapeText(entry->shape), ", not ",
                  to.shape.ToString());
  }
  const auto bytes = Bytes(*entry);
  if (!bytes.empty()) std::memcpy(to.raw, bytes.data(), bytes.size());
}

}  // namespace eyrie
