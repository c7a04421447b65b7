#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>

#include "core/error.h"
#include "launcher/indexed_dataset.h"

namespace eyrie {
namespace {

constexpr const char* kPartial = ".partial";

template <class T>
void Put(std::ofstream& out, const T& value) {
  out.write(reinterpret_cast<const char*>(&value), sizeof(T));
}

template <class T>
void PutAll(std::ofstream& out, std::span<const T> values) {
  out.write(reinterpret_cast<const char*>(values.data()),
            static_cast<std::streamsize>(values.size_bytes()));
}

void CloseAndSync(std::ofstream& out, const std::string& path) {
  out.close();
  bool good = !out.fail();
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  good = good && file >= 0 && fsync(file) == 0;
  const int problem = errno;
  if (file >= 0) close(file);
  if (!good) ThrowFailure(path, ": cannot write: ", std::strerror(problem));
}

void Rename(const std::string& path) {
  std::error_code problem;
  std::filesystem::rename(path + kPartial, path, problem);
  if (problem) ThrowFailure(path, ": cannot rename into place: ", problem.message());
}

}  // namespace

TokenType TokenTypeFor(int64_t vocab_size) {
  return vocab_size < 65500 ? TokenType::kUint16 : TokenType::kInt32;
}

IndexedDatasetWriter::IndexedDatasetWriter(const std::string& prefix, int64_t vocab_size)
    : prefix_(prefix), vocab_size_(vocab_size), type_(TokenTypeFor(vocab_size)) {
  const auto folder = std::filesystem::path(prefix).parent_path();
  std::error_code problem;
  if (!folder.empty()) std::filesystem::create_directories(folder, problem);
  if (problem) ThrowBadInput(folder.string(), ": cannot create: ", problem.message());
  const std::string path = prefix_ + ".bin" + kPartial;
  errno = 0;
  data_.open(path, std::ios::binary | std::ios::trunc);
  if (!data_) ThrowBadInput(path, ": cannot create: ", std::strerror(errno));
}

IndexedDatasetWriter::~IndexedDatasetWriter() {
  if (finished_) return;
  data_.close();
  std::error_code ignored;
  std::filesystem::remove(prefix_ + ".bin" + kPartial, ignored);
  std::filesystem::remove(prefix_ + ".idx" + kPartial, ignored);
}

void IndexedDatasetWriter::AddDocument(std::span<const int32_t> tokens) {
  EYRIE_CHECK(!finished_);
  if (tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    ThrowBadInput(prefix_, ": document ", documents(), " has ", tokens.size(),
                  " tokens, more than the format holds");
  }
  for (const int32_t id : tokens) {
    EYRIE_CHECK(id >= 0 && id < vocab_size_, "token id ", id, " of ", vocab_size_);
  }
  if (type_ == TokenType::kUint16) {
    narrow_.assign(tokens.begin(), tokens.end());
    PutAll<uint16_t>(data_, narrow_);
  } else {
    PutAll(data_, tokens);
  }
  if (!data_) ThrowFailure(prefix_, ".bin", kPartial, ": cannot write: ", std::strerror(errno));
  sizes_.push_back(static_cast<int32_t>(tokens.size()));
  total_tokens_ += static_cast<int64_t>(tokens.size());
}

void IndexedDatasetWriter::WriteIndex(const std::string& path) const {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write("MMIDIDX\0\0", 9);
  Put(out, uint64_t{1});
  Put(out, static_cast<uint8_t>(type_));
  Put(out, uint64_t{sizes_.size()});
  Put(out, uint64_t{sizes_.size() + 1});
  PutAll<int32_t>(out, sizes_);
  int64_t offset = 0;
  for (const int32_t tokens : sizes_) {
    Put(out, offset);
    offset += int64_t{tokens} * static_cast<int64_t>(TokenWidth(type_));
  }
  for (int64_t item = 0; item <= documents(); ++item) Put(out, item);
  CloseAndSync(out, path);
}

void IndexedDatasetWriter::Finish() {
  EYRIE_CHECK(!finished_);
  CloseAndSync(data_, prefix_ + ".bin" + kPartial);
  WriteIndex(prefix_ + ".idx" + kPartial);
  // Without an index a dataset does not exist, so no reader meets one file's old half and the
  // other's new one.
  std::error_code ignored;
  std::filesystem::remove(prefix_ + ".idx", ignored);
  Rename(prefix_ + ".bin");
  Rename(prefix_ + ".idx");
  finished_ = true;
}

}  // namespace eyrie
