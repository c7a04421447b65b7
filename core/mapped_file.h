// A file's bytes, mapped read-only.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace eyrie {

class MappedFile {
 public:
  // Throws kBadInput naming `path` if it is missing, unreadable or not a regular file. An empty
  // file is fine. The bytes stay valid for as long as nobody truncates the file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  // Copies bytes from `begin` on. For large parts that are not in memory yet faster than through
  // the mapping, which fetches pages one by one. Throws kFailed naming the file.
  void Read(size_t begin, std::span<std::byte> to) const;

 private:
  std::string path_;
  int descriptor_;
  std::span<const std::byte> bytes_;
};

}  // namespace eyrie
