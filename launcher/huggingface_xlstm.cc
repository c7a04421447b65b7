#include "launcher/huggingface_xlstm.h"

#include <numeric>

#include "core/error.h"

namespace eyrie {
namespace {

constexpr char kModelType[] = "xlstm";
constexpr char kEntry[] = "mlstm_large+swiglu";  // of the pattern
constexpr char kWeightMode[] = "single";
constexpr int64_t kMostLayers = 1000, kMostWidth = 1 << 24, kMostHeads = 1 << 16;
// How transformers itself sizes an MLP, unless told otherwise.
constexpr double kFactor = 2.667;
constexpr int64_t kMultiple = 64;

constexpr HuggingFaceName kNames[] = {
    {"norm_a.w", "norm_mlstm.weight"},
    {"norm_b.w", "norm_ffn.weight"},
    {"mlstm.q.w", "mlstm_layer.q.weight"},
    {"mlstm.k.w", "mlstm_layer.k.weight"},
    {"mlstm.v.w", "mlstm_layer.v.weight"},
    {"mlstm.out_gate.w", "mlstm_layer.ogate_preact.weight"},
    {"mlstm.gate_i.w", "mlstm_layer.igate_preact.weight"},
    {"mlstm.gate_i.b", "mlstm_layer.igate_preact.bias"},
    {"mlstm.gate_f.w", "mlstm_layer.fgate_preact.weight"},
    {"mlstm.gate_f.b", "mlstm_layer.fgate_preact.bias"},
    {"mlstm.norm.w", "mlstm_layer.multihead_norm.weight"},
    {"mlstm.out.w", "mlstm_layer.out_proj.weight"},
    {"mlp.gate.w", "ffn.proj_up_gate.weight"},
    {"mlp.up.w", "ffn.proj_up.weight"},
    {"mlp.down.w", "ffn.proj_down.weight"},
    // Of the whole model.
    {"tok.w", "backbone.embeddings.weight"},
    {"norm_f.w", "backbone.out_norm.weight"},
    {"head.w", "lm_head.weight"},
};

// floor(width factor), as transformers sizes keys and values.
int64_t Scaled(int64_t width, double factor) {
  return static_cast<int64_t>(static_cast<double>(width) * factor);
}
// A factor that gives it back.
double FactorOf(int64_t scaled, int64_t width) {
  const double factor = static_cast<double>(scaled) / static_cast<double>(width);
  return Scaled(width, factor) == scaled
             ? factor
             : (static_cast<double>(scaled) + 0.5) / static_cast<double>(width);
}

// What transformers makes of ffn_proj_factor and ffn_round_up_to_multiple_of, in its arithmetic.
int64_t MlpWidth(int64_t width, double factor, int64_t multiple) {
  const auto wanted = static_cast<double>(width) * factor;
  const auto rounds = static_cast<int64_t>((wanted + static_cast<double>(multiple - 1)) /
                                           static_cast<double>(multiple));
  return rounds * multiple;
}

int64_t ScaledSize(const HuggingFaceConfig& config, const char* name, double absent, int64_t width,
                   int64_t heads) {
  const double factor = config.Number(name, absent);
  if (!(factor > 0) || factor * static_cast<double>(width) > kMostWidth) {
    config.Refuse(name, "gives no width from 1 to ", kMostWidth);
  }
  const int64_t size = Scaled(width, factor);
  if (size < 1 || size % heads != 0) {
    config.Refuse(name, "gives a width of ", size, ", which ", heads, " heads do not divide");
  }
  return size;
}

// Two names of one thing.
int64_t EitherSize(const HuggingFaceConfig& config, const char* name, const char* other,
                   int64_t absent) {
  const int64_t size = config.Size(name, config.Size(other, absent));
  if (config.Size(other, size) != size) config.Refuse(other, "is not ", name, " = ", size);
  return size;
}

double Cap(const HuggingFaceConfig& config, const char* name, double absent) {
  const double cap = config.Number(name, absent);
  if (!(cap > 0)) config.Refuse(name, "must be positive");
  return cap;
}

// Absent fields have the defaults of transformers' xLSTMConfig. Fields that only initialise or say
// how to compute do not change the model.
config::ModelConfig Read(const HuggingFaceConfig& config) {
  if (config.Has("quantization_config")) config.Refuse("quantization_config", "is not supported");
  config.Require("weight_mode", kWeightMode);
  config.Require("use_bias", false);
  config.Require("add_out_norm", true);
  config.Require("tie_word_embeddings", false);
  config::ModelConfig model;
  const int64_t width = EitherSize(config, "hidden_size", "embedding_dim", 4096);
  model.set_width(width);
  model.set_vocab_size(config.Size("vocab_size", 50304));
  model.set_depth(EitherSize(config, "num_hidden_layers", "num_blocks", 32));
  if (model.depth() > kMostLayers) config.Refuse("num_hidden_layers", "more than ", kMostLayers);
  model.set_norm_epsilon(config.Number("norm_eps", 1e-6));
  if (!(model.norm_epsilon() > 0)) config.Refuse("norm_eps", "must be positive");
  model.add_pattern(kEntry);
  model.set_tied_embedding(false);
  model.set_embedding_variance(0.4);
  model.set_logit_soft_cap(Cap(config, "output_logit_soft_cap", 30));
  auto& mlstm = *model.mutable_mlstm();
  const int64_t heads = config.Size("num_heads", 8);
  if (heads > kMostHeads) config.Refuse("num_heads", "more than ", kMostHeads);
  mlstm.set_heads(heads);
  mlstm.set_width(ScaledSize(config, "v_dim_factor", 1.0, width, heads));
  mlstm.set_key_width(ScaledSize(config, "qk_dim_factor", 0.5, width, heads));
  mlstm.set_gate_soft_cap(Cap(config, "gate_soft_cap", 15));
  mlstm.set_epsilon(config.Number("eps", 1e-6));
  if (!(mlstm.epsilon() > 0)) config.Refuse("eps", "must be positive");
  const double factor = config.Number("ffn_proj_factor", kFactor);
  if (!(factor > 0) || factor * static_cast<double>(width) > kMostWidth) {
    config.Refuse("ffn_proj_factor", "gives no width from 1 to ", kMostWidth);
  }
  const int64_t multiple = config.Size("ffn_round_up_to_multiple_of", kMultiple);
  const int64_t hidden = MlpWidth(width, factor, multiple);
  if (hidden < 1) config.Refuse("ffn_proj_factor", "gives a width of ", hidden);
  model.mutable_mlp()->set_width(hidden);
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
  if (model.tied_embedding()) return "model.tied_embedding is true";
  if (!(model.logit_soft_cap() > 0)) return "model.logit_soft_cap is 0";
  const auto& mlstm = model.mlstm();
  if (!(mlstm.gate_soft_cap() > 0)) return "model.mlstm.gate_soft_cap is 0";
  if (mlstm.input_gate() != config::MlstmConfig::EXPONENTIAL) {
    return "model.mlstm.input_gate is not EXPONENTIAL";
  }
  if (mlstm.forget_gate() != config::MlstmConfig::SIGMOID) {
    return "model.mlstm.forget_gate is not SIGMOID";
  }
  return "";
}

nlohmann::ordered_json Write(const config::ModelConfig& model) {
  const auto& mlstm = model.mlstm();
  const int64_t width = model.width(), hidden = model.mlp().width();
  // As the released models say it, or else a multiple that rounding up to changes nothing.
  const bool usual = MlpWidth(width, kFactor, kMultiple) == hidden;
  const double factor = usual ? kFactor : FactorOf(hidden, width);
  const int64_t multiple = usual ? kMultiple : std::gcd(hidden, kMultiple);
  return {
      {"add_out_norm", true},
      {"architectures", {"xLSTMForCausalLM"}},
      {"embedding_dim", width},
      {"eps", mlstm.epsilon()},
      {"ffn_proj_factor", factor},
      {"ffn_round_up_to_multiple_of", multiple},
      {"gate_soft_cap", mlstm.gate_soft_cap()},
      {"hidden_size", width},
      {"model_type", kModelType},
      {"norm_eps", model.norm_epsilon()},
      {"num_blocks", model.depth()},
      {"num_heads", mlstm.heads()},
      {"num_hidden_layers", model.depth()},
      {"output_logit_soft_cap", model.logit_soft_cap()},
      {"qk_dim_factor", FactorOf(mlstm.key_width(), width)},
      {"tie_word_embeddings", false},
      {"use_bias", false},
      {"use_cache", true},
      {"v_dim_factor", FactorOf(mlstm.width(), width)},
      {"vocab_size", model.vocab_size()},
      {"weight_mode", kWeightMode},
  };
}

HuggingFaceTensor TensorOf(const ParamSpec& spec) {
  HuggingFaceTensor tensor = NamedTensor(spec, "backbone.blocks.", kNames);
  if (spec.name.ends_with("mlstm.norm.w")) tensor.shape = {spec.shape.size()};  // [H, dv]
  if (spec.name.ends_with("norm.w") || spec.name.ends_with("norm_a.w") ||
      spec.name.ends_with("norm_b.w") || spec.name == "norm_f.w") {
    tensor.added = 1;  // Eyrie's norms multiply by 1 + w
  }
  return tensor;
}

}  // namespace

HuggingFaceFamily XlstmFamily() { return {kModelType, Read, Obstacle, Write, TensorOf, {}}; }

}  // namespace eyrie
