// A family of models as Hugging Face's transformers stores them. A new one adds a pair of files and
// a line to the table in huggingface_family.cc.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "configs/schema/config.pb.h"
#include "core/param_table.h"
#include "launcher/huggingface_config.h"

namespace eyrie {

// How a parameter is stored in a Hugging Face folder.
struct HuggingFaceTensor {
  std::string name;
  Shape shape;
  // Apart from axes of extent 1, the last two axes of the parameter are stored swapped.
  bool transposed = false;
  // What the stored elements are more than the parameter's.
  float added = 0;
};

// A parameter's name after "blocks.N.", and its tensor's after the family's prefix of layer N; of
// parameters of the whole model, the names.
struct HuggingFaceName {
  std::string_view ours, theirs;
};
// How `names` call a parameter that is stored as it is; a layer's prefix is `layers` and "N.".
HuggingFaceTensor NamedTensor(const ParamSpec& spec, std::string_view layers,
                              std::span<const HuggingFaceName> names);

struct HuggingFaceFamily {
  std::string model_type;  // of config.json
  // The model that a config.json describes. Throws kBadInput naming a field.
  config::ModelConfig (*read)(const HuggingFaceConfig& config);
  // Why no config.json of this family can describe `model`, naming the field; empty if one can.
  std::string (*obstacle)(const config::ModelConfig& model);
  // The fields of config.json that describe `model`, which has no obstacle.
  nlohmann::ordered_json (*write)(const config::ModelConfig& model);
  // How a parameter of such a model is stored.
  HuggingFaceTensor (*tensor)(const ParamSpec& spec);
  // Tensors that some folders hold as well, and the one that each must be equal to.
  std::vector<std::pair<std::string, std::string>> copies;
};

const std::vector<HuggingFaceFamily>& HuggingFaceFamilies();

}  // namespace eyrie
