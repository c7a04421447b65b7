#include "launcher/huggingface_mamba.h"

#include "core/error.h"

namespace eyrie {
namespace {

constexpr char kModelType[] = "mamba";
constexpr char kEntry[] = "mamba";  // of the pattern
constexpr char kActivation[] = "silu";
constexpr int64_t kMostLayers = 1000, kMostWidth = 1 << 24;
constexpr int64_t kTaps = 4;

constexpr HuggingFaceName kNames[] = {
    {"norm_a.w", "norm.weight"},
    {"ssm.in.w", "mixer.in_proj.weight"},
    {"ssm.conv.w", "mixer.conv1d.weight"},
    {"ssm.conv.b", "mixer.conv1d.bias"},
    {"ssm.xp.w", "mixer.x_proj.weight"},
    {"ssm.dt.w", "mixer.dt_proj.weight"},
    {"ssm.dt.b", "mixer.dt_proj.bias"},
    {"ssm.A_log", "mixer.A_log"},
    {"ssm.D", "mixer.D"},
    {"ssm.out.w", "mixer.out_proj.weight"},
    // Of the whole model.
    {"tok.w", "backbone.embeddings.weight"},
    {"norm_f.w", "backbone.norm_f.weight"},
};

// Absent fields have the defaults of transformers' MambaConfig. Fields that it does not have, and
// those that only initialise or say how to compute, do not change the model.
config::ModelConfig Read(const HuggingFaceConfig& config) {
  if (config.Has("quantization_config")) config.Refuse("quantization_config", "is not supported");
  config.Require("hidden_act", kActivation);
  config.Require("conv_kernel", kTaps);
  config.Require("use_bias", false);
  config.Require("use_conv_bias", true);
  config.Require("tie_word_embeddings", true);
  config::ModelConfig model;
  const int64_t width = config.Size("hidden_size", 768);
  const int64_t inner = width * config.Size("expand", 2);
  if (inner > kMostWidth) config.Refuse("expand", "gives an inner width of more than ", kMostWidth);
  if (config.Size("intermediate_size", inner) != inner) {
    config.Refuse("intermediate_size", "is not expand x hidden_size = ", inner);
  }
  model.set_width(width);
  model.set_vocab_size(config.Size("vocab_size", 50280));
  model.set_depth(config.Size("num_hidden_layers", 32));
  if (model.depth() > kMostLayers) config.Refuse("num_hidden_layers", "more than ", kMostLayers);
  model.set_norm_epsilon(config.Number("layer_norm_epsilon", 1e-5));
  if (!(model.norm_epsilon() > 0)) config.Refuse("layer_norm_epsilon", "must be positive");
  model.add_pattern(kEntry);
  auto& mamba = *model.mutable_mamba();
  mamba.set_width(inner);
  mamba.set_states(config.Size("state_size", 16));
  if (config.Has("time_step_rank") && config.json().at("time_step_rank") != "auto") {
    mamba.set_dt_rank(config.Size("time_step_rank", 0));
  }
  return model;
}

std::string Obstacle(const config::ModelConfig& model) {
  for (const std::string& entry : model.pattern()) {
    if (entry != kEntry) return StrCat("model.pattern has \"", entry, "\"");
  }
  if (model.embedding_scale() != config::ModelConfig::UNSCALED) {
    return "model.embedding_scale is not UNSCALED";
  }
  if (model.norm() != config::ModelConfig::RMS_NORM) return "model.norm is not RMS_NORM";
  if (!model.tied_embedding()) return "model.tied_embedding is false";
  if (model.logit_soft_cap() > 0) return "model.logit_soft_cap is not 0";
  if (model.mamba().width() % model.width() != 0) {
    return StrCat("model.mamba.width = ", model.mamba().width(),
                  " is not a multiple of model.width = ", model.width());
  }
  if (!model.mamba().input_dependent()) return "model.mamba.input_dependent is false";
  return "";
}

nlohmann::ordered_json Write(const config::ModelConfig& model) {
  const auto& mamba = model.mamba();
  return {
      {"architectures", {"MambaForCausalLM"}},
      {"conv_kernel", kTaps},
      {"expand", mamba.width() / model.width()},
      {"hidden_act", kActivation},
      {"hidden_size", model.width()},
      {"intermediate_size", mamba.width()},
      {"layer_norm_epsilon", model.norm_epsilon()},
      {"model_type", kModelType},
      {"num_hidden_layers", model.depth()},
      {"residual_in_fp32", true},
      {"state_size", mamba.states()},
      {"tie_word_embeddings", true},
      {"time_step_rank", mamba.dt_rank()},
      {"use_bias", false},
      {"use_cache", true},
      {"use_conv_bias", true},
      {"vocab_size", model.vocab_size()},
  };
}

HuggingFaceTensor TensorOf(const ParamSpec& spec) {
  HuggingFaceTensor tensor = NamedTensor(spec, "backbone.layers.", kNames);
  if (spec.name.ends_with("conv.w")) {  // [4, E] as [E, 1, 4]
    tensor.transposed = true;
    tensor.shape = {spec.shape[1], 1, spec.shape[0]};
  } else if (spec.name.ends_with("ssm.in.w")) {  // [2, E, D] as [2 E, D]
    tensor.shape = {2 * spec.shape[1], spec.shape[2]};
  } else if (spec.name.ends_with("norm_a.w") || spec.name == "norm_f.w") {
    tensor.added = 1;  // Eyrie's norms multiply by 1 + w
  }
  return tensor;
}

}  // namespace

HuggingFaceFamily MambaFamily() {
  return {kModelType, Read,     Obstacle,
          Write,      TensorOf, {{"lm_head.weight", "backbone.embeddings.weight"}}};
}

}  // namespace eyrie
