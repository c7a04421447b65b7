// Hugging Face folders (config.json and safetensors files) to checkpoints and back. What differs
// from one model family to another is in huggingface_family.h; this is the rest. The result appears
// whole or not at all; memory is needed for two copies of the largest tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "core/dtype.h"

namespace eyrie {

struct HuggingFaceSummary {
  std::string model_type;
  int64_t parameters = 0;
};

// Writes the model in `folder` as a checkpoint at step 0 to `output`, which must not exist:
// parameters in float32 and no moments, with tokenizer.model if the folder has one. Throws
// kBadInput naming the field that no configuration of Eyrie can express, or the tensor that is
// missing, does not belong to the model or has another shape or type, and its file.
HuggingFaceSummary ImportHuggingFace(const std::filesystem::path& folder,
                                     const std::filesystem::path& output);

struct ExportOptions {
  DType dtype = DType::kF32;  // or kBF16, rounding to nearest
  // Parameters are divided into files of at most so many bytes of tensors, or of one tensor.
  int64_t shard_bytes = 5'000'000'000;
};

// Writes a checkpoint's parameters to `output`, which must not exist, as transformers reads them,
// with the tokenizer.model that the checkpoint carries. Throws kBadInput naming the field of the
// model that no known family has.
HuggingFaceSummary ExportHuggingFace(const std::filesystem::path& checkpoint,
                                     const std::filesystem::path& output,
                                     const ExportOptions& options);

}  // namespace eyrie
