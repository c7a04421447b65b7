// Files that must be on disk, whole, before anything refers to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace eyrie {

// A file being written. Every error throws kFailed naming the file and the reason.
class OutputFile {
 public:
  // Creates `path`, which must not exist.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void Write(const void* data, size_t bytes);
  // Waits until all is on disk, and closes. A file that is dropped without this is unfinished.
  void Finish();
  // Bytes written.
  int64_t size() const { return size_; }

 private:
  std::filesystem::path path_;
  int descriptor_;
  int64_t size_ = 0;
};

// Waits until the entries of a folder (files created, renamed, removed) are on disk.
void SyncDirectory(const std::filesystem::path& directory);

}  // namespace eyrie
