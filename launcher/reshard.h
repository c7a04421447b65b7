// Rewriting a checkpoint for another layout, by one process.
#pragma once

#include <filesystem>

#include "configs/schema/config.pb.h"
#include "core/param_table.h"

namespace eyrie {

// Writes `checkpoint` to the directory `output`, which must not exist, as the ranks of `parallel`
// (data 0 counts as 1) would have written it; `output` appears whole or not at all. Checks what it
// reads. Needs memory for one piece of one tensor.
void ReshardCheckpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& output,
                       const config::ParallelConfig& parallel);

// Likewise for parameters given by `table` instead of the checkpoint's model, and unchecked
// `parallel`, with no zeros.
void ReshardCheckpoint(const std::filesystem::path& checkpoint, const std::filesystem::path& output,
                       const config::ParallelConfig& parallel, const ParamTable& table);

}  // namespace eyrie
