#include "layers/registry.h"

#include <set>

#include "kernels/norm/rms_norm.h"
#include "layers/mixers/attention.h"
#include "layers/mixers/glu.h"
#include "layers/mixers/lightning.h"
#include "layers/mixers/mamba.h"
#include "layers/mixers/mlstm.h"
#include "layers/mixers/mlstm_large.h"
#include "layers/mixers/recurrent.h"
#include "layers/mixers/slstm.h"

namespace eyrie {

void ConfigErrors::RequirePositive(const std::string& field, int64_t value) {
  if (value <= 0) Add(field, " must be positive, is ", value);
}

void ConfigErrors::RequireDivisible(const std::string& field, int64_t value,
                                    const std::string& parts_field, int64_t parts) {
  RequirePositive(field, value);
  if (value > 0 && parts > 0 && value % parts != 0) {
    Add(field, " = ", value, " does not divide by ", parts_field, " = ", parts);
  }
}

const std::vector<MixerEntry>& MixerRegistry() {
  static const std::vector<MixerEntry> registry = {
      RecurrentMixerEntry(),
      MambaMixerEntry(),
      GlobalAttentionMixerEntry(),
      LocalAttentionMixerEntry(),
      LightningAttentionMixerEntry(),
      MlstmMixerEntry(),
      MlstmLargeMixerEntry(),
      SlstmMixerEntry(),
      GegluMixerEntry(),
      GegluErfMixerEntry(),
      SwigluMixerEntry(),
      SgluMixerEntry(),
  };
  return registry;
}

const MixerEntry* FindMixer(const std::string& name) {
  for (const MixerEntry& entry : MixerRegistry()) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

void CompleteModel(config::ModelConfig& model) {
  for (const MixerEntry& entry : MixerRegistry()) {
    if (entry.complete != nullptr) entry.complete(model);
  }
}

std::vector<std::string> SplitPatternEntry(const std::string& entry) {
  std::vector<std::string> names(1);
  for (const char letter : entry) {
    if (letter == '+') {
      names.emplace_back();
    } else {
      names.back() += letter;
    }
  }
  return names;
}

void ValidateModel(const config::ModelConfig& model, int64_t tensor, ConfigErrors& errors) {
  errors.RequireDivisible("model.vocab_size", model.vocab_size(), "parallel.tensor", tensor);
  errors.RequirePositive("model.width", model.width());
  errors.RequirePositive("model.depth", model.depth());
  if (model.norm_epsilon() <= 0) errors.Add("model.norm_epsilon must be positive");
  if (!(model.embedding_variance() > 0)) errors.Add("model.embedding_variance must be positive");
  if (model.logit_soft_cap() < 0) errors.Add("model.logit_soft_cap must not be negative");
  if (model.pattern().empty()) errors.Add("model.pattern is empty");
  std::set<std::string> seen;
  for (const std::string& pattern : model.pattern()) {
    const auto names = SplitPatternEntry(pattern);
    bool in_order = names.size() <= 2;
    for (size_t i = 0; i < names.size(); ++i) {
      const MixerEntry* entry = FindMixer(names[i]);
      if (entry != nullptr && names.size() == 2) in_order &= entry->channel_mixer == (i == 1);
      if (!seen.insert(names[i]).second) continue;
      if (entry != nullptr) {
        entry->validate(model, tensor, errors);
        continue;
      }
      std::string known;
      for (const MixerEntry& other : MixerRegistry()) {
        known += (known.empty() ? "" : ", ") + other.name;
      }
      errors.Add("model.pattern: unknown mixer \"", names[i], "\"; known: ", known);
    }
    if (!in_order) {
      errors.Add("model.pattern: \"", pattern, "\" is not \"mixer\" or \"mixer+channel_mixer\"");
    }
  }
}

void ValidateModelOnGpu(const config::ModelConfig& model, DType activations, ConfigErrors& errors) {
  if (model.width() > kMaxNormWidthCuda) {
    errors.Add("model.width = ", model.width(), "; GPUs take at most ", kMaxNormWidthCuda);
  }
  std::set<std::string> seen;
  for (const std::string& pattern : model.pattern()) {
    for (const std::string& name : SplitPatternEntry(pattern)) {
      const MixerEntry* entry = FindMixer(name);
      if (entry == nullptr || entry->validate_on_gpu == nullptr) continue;
      if (seen.insert(name).second) entry->validate_on_gpu(model, activations, errors);
    }
  }
}

void ValidateSequence(const config::ModelConfig& model, const std::string& field, int64_t length,
                      int64_t sequence, ConfigErrors& errors) {
  errors.RequireDivisible(field, length, "parallel.sequence", sequence);
  if (sequence <= 1) return;
  for (const std::string& pattern : model.pattern()) {
    for (const std::string& name : SplitPatternEntry(pattern)) {
      const MixerEntry* entry = FindMixer(name);
      if (entry == nullptr || length / sequence >= entry->min_chunk) continue;
      errors.Add(field, " = ", length, " on parallel.sequence = ", sequence, " gives a rank ",
                 length / sequence, " tokens, fewer than the halo of ", entry->min_chunk,
                 " that mixer \"", name, "\" needs");
      return;
    }
  }
}

}  // namespace eyrie
