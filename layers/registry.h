// The mixers a pattern can name. A new mixer adds its pair of files under mixers/ and one line to
// registry.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.pb.h"
#include "layers/layer.h"

namespace eyrie {

// Collects what is wrong with a configuration: all errors at once, each naming its field.
class ConfigErrors {
 public:
  template <class... Parts>
  void Add(const Parts&... parts) {
    messages_.push_back(StrCat(parts...));
  }
  // `value` (of `field`) must be positive and divide into `parts` equal parts, whose number is
  // `parts_field`.
  void RequirePositive(const std::string& field, int64_t value);
  void RequireDivisible(const std::string& field, int64_t value, const std::string& parts_field,
                        int64_t parts);
  const std::vector<std::string>& messages() const { return messages_; }

 private:
  std::vector<std::string> messages_;
};

struct MixerEntry {
  std::string name;
  // Reports what in `model` would stop this mixer from being built on `tensor` ranks.
  void (*validate)(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors);
  // Builds the mixer of block number `block`.
  std::unique_ptr<Mixer> (*make)(const config::ModelConfig& model, int64_t block);
  // The fewest tokens that a rank of the sequence axis may hold.
  int64_t min_chunk = 1;
  // Reports what in `model` the mixer's kernels for GPUs do not take, with activations of this
  // type. Null: they take all that `validate` does.
  void (*validate_on_gpu)(const config::ModelConfig& model, DType activations,
                          ConfigErrors& errors) = nullptr;
  // Whether a token's output depends on that token alone: such a mixer, and no other, may be the
  // second of a pattern's entry, and is not the first of two.
  bool channel_mixer = false;
  // Writes out the numbers of a valid model that are left to this mixer. Null: there are none.
  void (*complete)(config::ModelConfig& model) = nullptr;
};

const std::vector<MixerEntry>& MixerRegistry();
// Null when no mixer has this name.
const MixerEntry* FindMixer(const std::string& name);
// Writes out the numbers that a valid model leaves to its mixers.
void CompleteModel(config::ModelConfig& model);
// "recurrent+geglu" -> {"recurrent", "geglu"}
std::vector<std::string> SplitPatternEntry(const std::string& entry);

// Everything wrong with a model on `tensor` tensor ranks.
void ValidateModel(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors);
// What of a model GPUs do not compute with activations of this type.
void ValidateModelOnGpu(const config::ModelConfig& model, DType activations, ConfigErrors& errors);
// What is wrong with cutting sequences of `length` tokens (of `field`) over `sequence` ranks.
void ValidateSequence(const config::ModelConfig& model, const std::string& field, int64_t length,
                      int64_t sequence, ConfigErrors& errors);

}  // namespace eyrie
