// How much memory there is on the CPU's side.
#pragma once

#include <filesystem>

namespace eyrie {

// Bytes that the processes of a job can have together on this node: the machine's memory, or less
// where control groups limit it, as containers and schedulers set them (cgroups(7), versions 1 and
// 2). `root` is the file system that tells; one without control groups tells of no limit.
double NodeMemory(const std::filesystem::path& root = "/");

}  // namespace eyrie
