// Loading, completing and checking configurations. Nothing below the launcher parses text.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.pb.h"
#include "core/stash.h"
#include "layers/registry.h"
#include "parallel/mesh.h"

namespace eyrie {

// Reads the text of a file as a text-format message. Throws kBadInput naming FILE:LINE and the
// field.
void ParseText(const std::string& text, const std::string& file,
               google::protobuf::Message& message);
// Reads such a file; `what` names the kind of file.
void ParseTextFile(const std::string& file, const char* what, google::protobuf::Message& message);
// Reads a text-format Config, likewise.
config::Config LoadConfig(const std::string& file);

// Applies "path.to.field=value". Strings are taken as they are; a repeated field takes a
// comma-separated list. Throws kBadInput naming the setting.
void ApplySettings(const std::vector<std::string>& settings, config::Config& config);

// Completes a configuration for a job of `ranks` ranks: writes every default out and fixes
// parallel.data. Throws kBadInput, in one line, with everything that is wrong with the model and
// the layout.
void Resolve(config::Config& config, int ranks);
// The same for a job elsewhere, on `device`.
void Resolve(config::Config& config, int ranks, Device device);
// Likewise for the fields that only training needs. Call after Resolve.
void ValidateForTraining(const config::Config& config);

// What is wrong with the fields that say how large a step is: part of ValidateForTraining.
void ValidateStep(const config::Config& config, ConfigErrors& errors);
// What keeps sequences of `length` tokens, which `field` gives, from the layout and the chunks that
// they are to run in.
void ValidateSequence(const config::Config& config, const std::string& field, int64_t length,
                      ConfigErrors& errors);
// How many microbatches a rank runs in a step.
int64_t Rounds(const config::Config& config);

// Throws kBadInput with all of them in one line, if there are any.
void ThrowIfAny(const ConfigErrors& errors);

Recompute RecomputeOf(const config::TrainConfig& train);
MeshShape MeshShapeOf(const config::ParallelConfig& parallel);

// Throws kBadInput naming the first field in which the models differ; `checkpoint` is where `saved`
// was read from.
void RequireSameModel(const config::ModelConfig& saved, const config::ModelConfig& wanted,
                      const std::string& checkpoint);

std::string ToText(const google::protobuf::Message& message);

}  // namespace eyrie
