// One file of named tensors in the safetensors format: the length of a JSON header (8 bytes,
// little-endian), the header, then the tensors' bytes without gaps.
// https://github.com/huggingface/safetensors
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/mapped_file.h"
#include "core/output_file.h"
#include "core/tensor.h"

namespace eyrie {

using SafetensorsMetadata = std::map<std::string, std::string>;

// A tensor that a file will hold.
struct SafetensorsSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  size_t bytes() const { return static_cast<size_t>(shape.size()) * SizeOf(dtype); }
};

// What was written, to be found again.
struct SafetensorsSummary {
  int64_t size = 0;                 // of the file, bytes
  uint64_t header_checksum = 0;     // of the length and the header
  std::vector<uint64_t> checksums;  // of each tensor's bytes, as declared
};

// Writes a file tensor by tensor. Errors of the disk throw kFailed naming the file.
class SafetensorsWriter {
 public:
  // Creates `path`, which must not exist. Larger element types come first in `tensors`, so that
  // every element is aligned.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsSpec> tensors,
                    const SafetensorsMetadata& metadata = {});
  // The bytes of the next tensor, in the order declared.
  void Write(const void* data);
  // Waits until all is on disk.
  SafetensorsSummary Finish();

 private:
  std::vector<SafetensorsSpec> tensors_;
  OutputFile file_;
  SafetensorsSummary summary_;
};

// Reads a file. Everything about it is checked at once, so that a damaged or hostile file throws
// kBadInput naming it, and nothing else happens.
class SafetensorsFile {
 public:
  struct Entry {
    std::string name;
    std::string type;            // as the file names it
    std::optional<DType> dtype;  // unless this program has no such type (F16, I64, ...)
    std::vector<int64_t> shape;
    uint64_t offset = 0;  // of its bytes in the file
    uint64_t bytes = 0;
  };

  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::string& path() const { return file_.path(); }
  // In the order of their bytes.
  const std::vector<Entry>& entries() const { return entries_; }
  const SafetensorsMetadata& metadata() const { return metadata_; }
  // Null when there is no such tensor.
  const Entry* Find(const std::string& name) const;
  // A tensor's bytes, which need not be aligned. They live as long as this object.
  std::span<const std::byte> Bytes(const Entry& entry) const;
  // Copies bytes of a tensor from `begin` on, with MappedFile::Read.
  void ReadBytes(const Entry& entry, size_t begin, std::span<std::byte> to) const {
    file_.Read(static_cast<size_t>(entry.offset) + begin, to);
  }
  // The length and the header.
  std::span<const std::byte> Header() const { return file_.bytes().first(data_start_); }
  int64_t size() const { return static_cast<int64_t>(file_.bytes().size()); }
  // Copies a tensor. Throws kBadInput if it is missing or has another type or shape than `to`.
  void Read(const std::string& name, const Tensor& to) const;

 private:
  MappedFile file_;
  size_t data_start_ = 0;
  std::vector<Entry> entries_;
  std::map<std::string, size_t> index_;
  SafetensorsMetadata metadata_;
};

}  // namespace eyrie
