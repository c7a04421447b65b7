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
  const int problem = errno;
  close(file);  // the mapping keeps the file open
  if (start == MAP_FAILED) ThrowFailure(path, ": cannot map: ", std::strerror(problem));
  bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace eyrie
