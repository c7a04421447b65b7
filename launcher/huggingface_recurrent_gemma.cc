#include "launcher/huggingface_recurrent_gemma.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace eyrie {
namespace {

constexpr char kModelType[] = "recurrent_gemma";
constexpr char kActivation[] = "gelu_pytorch_tanh";
constexpr double kRotaryFactor = 0.5;
constexpr int64_t kMostLayers = 1000;
constexpr int64_t kTaps = 4;
// What transformers repeats block_types to, at most.
constexpr int64_t kMostRepeats = 100;

constexpr std::array<std::pair<const char*, const char*>, 2> kBlocks{{
    {"recurrent", "recurrent+geglu"},
    {"attention", "local_attention+geglu"},
}};

constexpr HuggingFaceName kNames[] = {
    {"norm_a.w", "temporal_pre_norm.weight"},
    {"norm_b.w", "channel_pre_norm.weight"},
    {"rec.in_y.w", "temporal_block.linear_y.weight"},
    {"rec.in_y.b", "temporal_block.linear_y.bias"},
    {"rec.in_x.w", "temporal_block.linear_x.weight"},
    {"rec.in_x.b", "temporal_block.linear_x.bias"},
    {"rec.conv.w", "temporal_block.conv_1d.weight"},
    {"rec.conv.b", "temporal_block.conv_1d.bias"},
    {"rec.gate_i.w", "temporal_block.rg_lru.input_gate_weight"},
    {"rec.gate_i.b", "temporal_block.rg_lru.input_gate_bias"},
    {"rec.gate_r.w", "temporal_block.rg_lru.recurrent_gate_weight"},
    {"rec.gate_r.b", "temporal_block.rg_lru.recurrent_gate_bias"},
    {"rec.lambda", "temporal_block.rg_lru.recurrent_param"},
    {"rec.out.w", "temporal_block.linear_out.weight"},
    {"rec.out.b", "temporal_block.linear_out.bias"},
    {"att.q.w", "temporal_block.q_proj.weight"},
    {"att.k.w", "temporal_block.k_proj.weight"},
    {"att.v.w", "temporal_block.v_proj.weight"},
    {"att.out.w", "temporal_block.o_proj.weight"},
    {"att.out.b", "temporal_block.o_proj.bias"},
    {"mlp.gate.w", "mlp_block.gate_proj.weight"},
    {"mlp.gate.b", "mlp_block.gate_proj.bias"},
    {"mlp.up.w", "mlp_block.up_proj.weight"},
    {"mlp.up.b", "mlp_block.up_proj.bias"},
    {"mlp.down.w", "mlp_block.down_proj.weight"},
    {"mlp.down.b", "mlp_block.down_proj.bias"},
    // Of the whole model.
    {"tok.w", "model.embed_tokens.weight"},
    {"norm_f.w", "model.final_norm.weight"},
};

bool Uses(const config::ModelConfig& model, std::string_view entry) {
  return std::find(model.pattern().begin(), model.pattern().end(), entry) != model.pattern().end();
}
bool UsesRecurrent(const config::ModelConfig& model) { return Uses(model, kBlocks[0].second); }
bool UsesAttention(const config::ModelConfig& model) { return Uses(model, kBlocks[1].second); }

// Where the rotary settings are depends on the version of transformers that wrote the file.
double ReadRotaryBase(const HuggingFaceConfig& config) {
  if (config.Has("rope_scaling")) config.Refuse("rope_scaling", "is not supported");
  config.Require("partial_rotary_factor", kRotaryFactor);
  const HuggingFaceConfig rope = config.Object("rope_parameters");
  rope.Require("rope_type", "default");
  rope.Require("partial_rotary_factor", kRotaryFactor);
  const HuggingFaceConfig& holder = rope.Has("rope_theta") ? rope : config;
  const double base = holder.Number("rope_theta", 10000.0);
  if (!(base > 0)) holder.Refuse("rope_theta", "must be positive");
  return base;
}

// Absent fields have the defaults of transformers' RecurrentGemmaConfig. Fields that it does not
// have, and those that only initialise or train (initialisation scales, dropout, token ids,
// use_cache, dtype, ...), do not change the model.
config::ModelConfig Read(const HuggingFaceConfig& config) {
  if (config.Has("quantization_config")) config.Refuse("quantization_config", "is not supported");
  config.Require("hidden_activation", kActivation);
  config.Require("conv1d_width", kTaps);
  config.Require("attention_bias", false);
  config.Require("tie_word_embeddings", true);
  config.Require("embeddings_scale_by_sqrt_dim", true);
  config::ModelConfig model;
  const int64_t width = config.Size("hidden_size", 2560);
  const int64_t heads = config.Size("num_attention_heads", 10);
  const int64_t lru_width = config.Size("lru_width", width);
  const int64_t mlp_width = config.Size("intermediate_size", 7680);
  model.set_width(width);
  model.set_vocab_size(config.Size("vocab_size", 256000));
  model.set_depth(config.Size("num_hidden_layers", 26));
  if (model.depth() > kMostLayers) config.Refuse("num_hidden_layers", "more than ", kMostLayers);
  model.set_norm(config::ModelConfig::RMS_NORM);
  model.set_tied_embedding(true);
  model.set_embedding_variance(1);
  model.set_embedding_scale(config::ModelConfig::SQRT_WIDTH);
  model.set_norm_epsilon(config.Number("rms_norm_eps", 1e-6));
  if (!(model.norm_epsilon() > 0)) config.Refuse("rms_norm_eps", "must be positive");
  model.set_logit_soft_cap(config.Number("logits_soft_cap", 30.0));
  if (!(model.logit_soft_cap() > 0)) config.Refuse("logits_soft_cap", "must be positive");
  if (mlp_width % 2 != 0) {
    config.Refuse("intermediate_size", "must be even: it counts both halves of the gated MLP");
  }
  model.mutable_mlp()->set_width(mlp_width / 2);

  for (const std::string& type :
       config.Texts("block_types", {"recurrent", "recurrent", "attention"})) {
    const auto* block = std::find_if(kBlocks.begin(), kBlocks.end(),
                                     [&](const auto& known) { return type == known.first; });
    if (block == kBlocks.end()) {
      config.Refuse("block_types", "only \"recurrent\" and \"attention\" are supported");
    }
    model.add_pattern(block->second);
    if (type == "recurrent") {
      if (lru_width % heads != 0) {
        config.Refuse(config.Has("lru_width") ? "lru_width" : "hidden_size",
                      "does not divide by num_attention_heads = ", heads);
      }
      model.mutable_recurrent()->set_width(lru_width);
      model.mutable_recurrent()->set_gate_blocks(heads);
    } else {
      if (width % heads != 0) {
        config.Refuse("hidden_size", "does not divide by num_attention_heads = ", heads);
      }
      const int64_t head_width = width / heads;
      if (config.Size("head_dim", head_width) != head_width) {
        config.Refuse("head_dim", "is not hidden_size / num_attention_heads = ", head_width);
      }
      if (head_width % 4 != 0) {
        config.Refuse("num_attention_heads", "heads of width ", head_width,
                      " do not divide by 4, as rotary positions need");
      }
      if (config.Size("num_key_value_heads", heads) != 1) {
        config.Refuse(
            "num_key_value_heads", "only 1 is supported",
            config.Has("num_key_value_heads") ? "" : ", and absent means as many as heads");
      }
      auto& attention = *model.mutable_attention();
      attention.set_heads(heads);
      attention.set_head_width(head_width);
      attention.set_window(config.Size("attention_window_size", 2048));
      attention.set_rotary_base(ReadRotaryBase(config));
    }
  }
  return model;
}

std::string Obstacle(const config::ModelConfig& model) {
  for (const std::string& entry : model.pattern()) {
    const bool known = std::any_of(kBlocks.begin(), kBlocks.end(),
                                   [&](const auto& block) { return entry == block.second; });
    if (!known) return StrCat("model.pattern has \"", entry, "\"");
  }
  if (model.embedding_scale() != config::ModelConfig::SQRT_WIDTH) {
    return "model.embedding_scale is not SQRT_WIDTH";
  }
  if (model.norm() != config::ModelConfig::RMS_NORM) return "model.norm is not RMS_NORM";
  if (!model.tied_embedding()) return "model.tied_embedding is false";
  if (!(model.logit_soft_cap() > 0)) return "model.logit_soft_cap is 0";
  if (model.depth() > kMostRepeats * model.pattern_size()) {
    return StrCat("model.depth = ", model.depth(), " repeats the pattern more than ", kMostRepeats,
                  " times");
  }
  const int64_t heads = model.attention().heads(), head_width = model.attention().head_width();
  if (UsesAttention(model) && heads * head_width != model.width()) {
    return StrCat("model.attention.heads x head_width = ", heads * head_width,
                  " is not model.width = ", model.width());
  }
  if (UsesAttention(model) && UsesRecurrent(model) && heads != model.recurrent().gate_blocks()) {
    return StrCat("model.recurrent.gate_blocks = ", model.recurrent().gate_blocks(),
                  " is not model.attention.heads = ", heads);
  }
  return "";
}

nlohmann::ordered_json Write(const config::ModelConfig& model) {
  const int64_t heads =
      UsesAttention(model) ? model.attention().heads() : model.recurrent().gate_blocks();
  const double base = model.attention().rotary_base();
  auto blocks = nlohmann::ordered_json::array();
  for (const std::string& entry : model.pattern()) {
    for (const auto& [theirs, ours] : kBlocks) {
      if (entry == ours) blocks.push_back(theirs);
    }
  }
  return {
      {"architectures", {"RecurrentGemmaForCausalLM"}},
      {"attention_bias", false},
      {"attention_window_size", model.attention().window()},
      {"block_types", std::move(blocks)},
      {"conv1d_width", kTaps},
      {"embeddings_scale_by_sqrt_dim", true},
      {"head_dim", model.width() / heads},
      {"hidden_activation", kActivation},
      {"hidden_size", model.width()},
      {"intermediate_size", 2 * model.mlp().width()},
      {"logits_soft_cap", model.logit_soft_cap()},
      {"lru_width", UsesRecurrent(model) ? model.recurrent().width() : model.width()},
      {"model_type", kModelType},
      {"num_attention_heads", heads},
      {"num_hidden_layers", model.depth()},
      {"num_key_value_heads", 1},
      {"rms_norm_eps", model.norm_epsilon()},
      {"rope_parameters",
       {{"partial_rotary_factor", kRotaryFactor}, {"rope_theta", base}, {"rope_type", "default"}}},
      // Again for transformers before version 5.
      {"partial_rotary_factor", kRotaryFactor},
      {"rope_theta", base},
      {"tie_word_embeddings", true},
      {"use_cache", true},
      {"vocab_size", model.vocab_size()},
  };
}

HuggingFaceTensor TensorOf(const ParamSpec& spec) {
  HuggingFaceTensor tensor = NamedTensor(spec, "model.layers.", kNames);
  if (spec.name.ends_with("rec.conv.w")) {  // [4, R] as [R, 1, 4]
    tensor.transposed = true;
    tensor.shape = {spec.shape[1], 1, spec.shape[0]};
  } else if (spec.name.ends_with("rec.gate_i.w") || spec.name.ends_with("rec.gate_r.w")) {
    // [G, out, in] as [G, in, out]
    tensor.transposed = true;
    tensor.shape = {spec.shape[0], spec.shape[2], spec.shape[1]};
  }
  return tensor;
}

}  // namespace

HuggingFaceFamily RecurrentGemmaFamily() {
  return {kModelType, Read,     Obstacle,
          Write,      TensorOf, {{"lm_head.weight", "model.embed_tokens.weight"}}};
}

}  // namespace eyrie
