// The tensors of a Hugging Face folder: reading those of one model, and what they hold as float32.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/safetensors.h"

namespace eyrie {

// All errors are kBadInput, one line naming the file and the tensor.
class HuggingFaceTensors {
 public:
  // Opens model.safetensors, or the files that model.safetensors.index.json names, which must hold
  // exactly what it says.
  explicit HuggingFaceTensors(const std::filesystem::path& folder);

  bool Has(const std::string& name) const { return tensors_.contains(name); }
  // Throws unless the tensor is there, in a floating-point type of 16 or 32 bits, in this shape.
  void Check(const std::string& name, const Shape& shape) const;
  // Throws if any tensor is not one of `names`.
  void RequireOnly(const std::vector<std::string>& names) const;
  // Throws unless the two have the same type, shape and bytes.
  void RequireEqual(const std::string& name, const std::string& other) const;
  // The elements of a checked tensor as float32. Valid until the next call.
  const float* Read(const std::string& name);

 private:
  struct Place {
    const SafetensorsFile* file;
    const SafetensorsFile::Entry* entry;
  };
  void Add(const SafetensorsFile& file);
  const Place& Find(const std::string& name) const;

  std::string source_;  // what lists the tensors
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Place> tensors_;
  Buffer buffer_;
};

// Writes each of `count` matrices `from` [rows, columns] to `to` [columns, rows].
void TransposeMatrices(int64_t count, int64_t rows, int64_t columns, const float* from, float* to);

}  // namespace eyrie
