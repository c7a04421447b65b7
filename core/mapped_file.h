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

 private:
  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace eyrie
