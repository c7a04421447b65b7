#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace eyrie {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer.
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) ThrowBadInput(path, ": cannot open: ", std::strerror(errno));
  struct stat status;
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(file);
    ThrowBadInput(path, ": not a regular file");
  }
  const size_t size = static_cast<size_t>(status.st_size);
  void* start = nullptr;
  if (size > 0) start = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  if (start == MAP_FAILED) {
    const int problem = errno;
    close(file);
    ThrowFailure(path, ": cannot map: ", std::strerror(problem));
  }
  descriptor_ = file;
  bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  close(descriptor_);
}

void MappedFile::Read(size_t begin, std::span<std::byte> to) const {
  EYRIE_CHECK(begin <= bytes_.size() && to.size() <= bytes_.size() - begin);
  while (!to.empty()) {
    const ssize_t count = pread(descriptor_, to.data(), to.size(), static_cast<off_t>(begin));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      ThrowFailure(path_, ": cannot read: ", count == 0 ? "the file ends" : std::strerror(errno));
    }
    begin += static_cast<size_t>(count);
    to = to.subspan(static_cast<size_t>(count));
  }
}

}  // namespace eyrie
