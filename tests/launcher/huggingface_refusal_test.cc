// Every kind of Hugging Face folder or model that cannot be converted, and what is said about it.
#include <gtest/gtest.h>

#include "launcher/config.h"
#include "launcher/huggingface_family.h"
#include "tests/launcher/huggingface_util.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void ExpectParts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
}

TEST_F(HuggingFaceTest, RefusesWhatNoConfigurationCanExpress) {
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"model_type", "llama"}}, "model_type = \"llama\": supported: recurrent_gemma"},
      {{{"model_type", nullptr}}, "model_type: supported"},
      {{{"hidden_activation", "gelu"}}, "hidden_activation = \"gelu\": only"},
      {{{"num_key_value_heads", 2}}, "num_key_value_heads = 2: only 1"},
      {{{"num_key_value_heads", nullptr}}, "num_key_value_heads: only 1"},
      {{{"lru_width", 33}}, "lru_width = 33: does not divide by num_attention_heads = 2"},
      {{{"conv1d_width", 3}}, "conv1d_width = 3: only 4"},
      {{{"attention_bias", true}}, "attention_bias = true"},
      {{{"tie_word_embeddings", false}}, "tie_word_embeddings = false"},
      {{{"embeddings_scale_by_sqrt_dim", false}}, "embeddings_scale_by_sqrt_dim = false"},
      {{{"hidden_size", 0}}, "hidden_size = 0: expected a positive integer"},
      {{{"hidden_size", -32}}, "hidden_size = -32: expected a positive integer"},
      {{{"hidden_size", 32.5}}, "hidden_size = 32.5: expected a positive integer"},
      {{{"hidden_size", "32"}}, "hidden_size = \"32\": expected a positive integer"},
      {{{"hidden_size", 1000000000000}}, "hidden_size = 1000000000000: more than"},
      {{{"hidden_size", 33}, {"lru_width", 32}}, "hidden_size = 33: does not divide"},
      {{{"hidden_size", 36}, {"head_dim", 18}}, "num_attention_heads = 2: heads of width 18"},
      {{{"num_hidden_layers", 100000}}, "num_hidden_layers = 100000: more than"},
      {{{"head_dim", 32}}, "head_dim = 32: is not hidden_size / num_attention_heads = 16"},
      {{{"intermediate_size", 191}}, "intermediate_size = 191: must be even"},
      {{{"logits_soft_cap", 0}}, "logits_soft_cap = 0: must be positive"},
      {{{"logits_soft_cap", "x"}}, "logits_soft_cap = \"x\": expected a number"},
      {{{"rms_norm_eps", 0}}, "rms_norm_eps = 0: must be positive"},
      {{{"block_types", {"recurrent", "mamba"}}}, "block_types = [\"recurrent\",\"mamba\"]: only"},
      {{{"block_types", json::array()}}, "block_types = []: expected a list"},
      {{{"block_types", "recurrent"}}, "block_types = \"recurrent\": expected a list"},
      {{{"attention_window_size", 0}}, "attention_window_size = 0"},
      {{{"rope_parameters", {{"rope_type", "linear"}}}}, "rope_parameters.rope_type = \"linear\""},
      {{{"rope_parameters", {{"partial_rotary_factor", 1.0}}}},
       "rope_parameters.partial_rotary_factor = 1.0: only 0.5"},
      {{{"rope_parameters", {{"rope_theta", -1.0}}}}, "rope_parameters.rope_theta = -1.0"},
      {{{"rope_parameters", 5}}, "rope_parameters = 5: expected an object"},
      {{{"partial_rotary_factor", 0.25}}, "partial_rotary_factor = 0.25: only 0.5"},
      {{{"rope_scaling", {{"type", "linear"}}}}, "rope_scaling = {\"type\":\"linear\"}"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
  };
  for (const auto& [patch, expected] : cases) {
    ExpectParts(Refused(WithConfig(patch)), {Path("hf/config.json"), expected});
  }
}

TEST_F(HuggingFaceTest, RefusesMambasThatNoConfigurationCanExpress) {
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"hidden_act", "gelu"}}, "hidden_act = \"gelu\": only"},
      {{{"conv_kernel", 3}}, "conv_kernel = 3: only 4"},
      {{{"use_bias", true}}, "use_bias = true"},
      {{{"use_conv_bias", false}}, "use_conv_bias = false"},
      {{{"tie_word_embeddings", false}}, "tie_word_embeddings = false"},
      {{{"expand", 2.5}}, "expand = 2.5: expected a positive integer"},
      {{{"expand", 16777216}}, "expand = 16777216: gives an inner width of more than"},
      {{{"intermediate_size", 65}}, "intermediate_size = 65: is not expand x hidden_size = 64"},
      {{{"num_hidden_layers", 1001}}, "num_hidden_layers = 1001: more than"},
      {{{"layer_norm_epsilon", 0}}, "layer_norm_epsilon = 0: must be positive"},
      {{{"time_step_rank", "most"}}, "time_step_rank = \"most\": expected a positive integer"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
  };
  for (const auto& [patch, expected] : cases) {
    ExpectParts(Refused(WithConfig(patch, "mamba")), {Path("hf/config.json"), expected});
  }
  // What a configuration can express, but no mixer does.
  ExpectParts(Refused(WithConfig({{"state_size", 65}}, "mamba")), {"model.mamba.states = 65"});
  // Another shape than the tensors'.
  ExpectParts(Refused(WithConfig({{"time_step_rank", 3}}, "mamba")),
              {"mixer.x_proj.weight", "[35, 64]"});
}

TEST_F(HuggingFaceTest, RefusesXlstmsThatNoConfigurationCanExpress) {
  const std::vector<std::pair<json, std::string>> cases = {
      {{{"weight_mode", "fused"}}, "weight_mode = \"fused\": only"},
      {{{"use_bias", true}}, "use_bias = true"},
      {{{"add_out_norm", false}}, "add_out_norm = false"},
      {{{"tie_word_embeddings", true}}, "tie_word_embeddings = true"},
      {{{"eps", 0}}, "eps = 0: must be positive"},
      {{{"embedding_dim", 64}}, "embedding_dim = 64: is not hidden_size = 32"},
      {{{"num_blocks", 2}}, "num_blocks = 2: is not num_hidden_layers = 3"},
      {{{"num_hidden_layers", 1001}, {"num_blocks", nullptr}}, "num_hidden_layers = 1001: more"},
      {{{"num_heads", 65537}}, "num_heads = 65537: more than"},
      {{{"num_heads", 3}}, "v_dim_factor = 1.0: gives a width of 32, which 3 heads do not divide"},
      {{{"qk_dim_factor", 0.1}}, "qk_dim_factor = 0.1: gives a width of 3, which 2 heads"},
      {{{"qk_dim_factor", -1}}, "qk_dim_factor = -1: gives no width"},
      {{{"v_dim_factor", 1e9}}, "v_dim_factor = 1000000000.0: gives no width"},
      {{{"ffn_proj_factor", 1e9}}, "ffn_proj_factor = 1000000000.0: gives no width"},
      {{{"gate_soft_cap", 0}}, "gate_soft_cap = 0: must be positive"},
      {{{"output_logit_soft_cap", 0}}, "output_logit_soft_cap = 0: must be positive"},
      {{{"norm_eps", 0}}, "norm_eps = 0: must be positive"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
  };
  for (const auto& [patch, expected] : cases) {
    ExpectParts(Refused(WithConfig(patch, "xlstm")), {Path("hf/config.json"), expected});
  }
  // Another shape than the tensors'.
  ExpectParts(Refused(WithConfig({{"qk_dim_factor", 1.0}}, "xlstm")),
              {"mlstm_layer.q.weight", "[16,32], not [32, 32]"});
}

TEST_F(HuggingFaceTest, RefusesTensorsThatAreNotTheModels) {
  const std::string file = Path("hf/model.safetensors");
  ExpectParts(Refused(WithTensors([](RawTensors& tensors) {
                tensors.erase("model.layers.1.mlp_block.up_proj.bias");
              })),
              {file, "no tensor \"model.layers.1.mlp_block.up_proj.bias\""});
  ExpectParts(Refused(WithTensors([](RawTensors& tensors) {
                tensors["model.layers.3.temporal_pre_norm.weight"] =
                    tensors.at("model.final_norm.weight");
              })),
              {file, "\"model.layers.3.temporal_pre_norm.weight\" is not part of the model"});
  ExpectParts(Refused(WithTensors([](RawTensors& tensors) {
                tensors.at("model.layers.0.temporal_block.conv_1d.weight").shape = {32, 4};
              })),
              {file, "model.layers.0.temporal_block.conv_1d.weight\" is [32,4], not [32, 1, 4]"});
  ExpectParts(Refused(WithTensors(
                  [](RawTensors& tensors) { tensors.at("model.final_norm.weight").type = "I32"; })),
              {file, "\"model.final_norm.weight\" is I32, not F32, BF16 or F16"});
  ExpectParts(Refused(WithTensors([](RawTensors& tensors) {
                tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
                tensors.at("lm_head.weight").bytes[7] ^= 1;
              })),
              {file, "\"lm_head.weight\" differs from \"model.embed_tokens.weight\""});
  // A different model altogether.
  ExpectParts(Refused(WithConfig({{"vocab_size", 65}})), {file, "is [64,32], not [65, 32]"});
  ExpectParts(Refused(WithConfig({{"num_hidden_layers", 4}})), {file, "\"model.layers.3."});
}

// Printing or copying such a tree would overflow the stack.
TEST_F(HuggingFaceTest, RefusesDeepNesting) {
  const std::string deep(1'000'000, '[');
  for (const std::string& end : {std::string(), std::string(1'000'000, ']')}) {
    const std::string file = Write("config.json", "{\"model_type\": " + deep + end + "}");
    ExpectParts(BadInput([&] { HuggingFaceConfig config{fs::path(file)}; }),
                {file, "nested too deep"});
  }
}

TEST_F(HuggingFaceTest, RefusesDamagedFolders) {
  ExpectParts(Refused(Path("nowhere")), {Path("nowhere"), "no such directory"});
  fs::create_directory(Path("empty"));
  ExpectParts(Refused(Path("empty")), {Path("empty/config.json"), "cannot open"});

  const fs::path folder = CopyOf("small");
  Write("hf/config.json", "{\"model_type\": ");
  ExpectParts(Refused(folder), {Path("hf/config.json"), "not valid JSON"});
  Write("hf/config.json", "[]");
  ExpectParts(Refused(folder), {Path("hf/config.json"), "not a JSON object"});

  CopyOf("small");
  fs::remove(folder / "model.safetensors");
  ExpectParts(Refused(folder), {folder.string(), "neither model.safetensors nor"});
  CopyOf("small");
  fs::resize_file(folder / "model.safetensors", 10000);
  ExpectParts(Refused(folder), {Path("hf/model.safetensors"), "truncated"});

  // In several files.
  const std::string second = "model-00002-of-00003.safetensors";
  const std::string index = Path("hf/model.safetensors.index.json");
  CopyOf("wide");
  fs::remove(folder / second);
  ExpectParts(Refused(folder), {second, "cannot open"});
  CopyOf("wide");
  fs::resize_file(folder / second, 20000);
  ExpectParts(Refused(folder), {second, "truncated"});
  CopyOf("wide");
  fs::copy_file(folder / "model-00003-of-00003.safetensors", folder / second,
                fs::copy_options::overwrite_existing);
  ExpectParts(Refused(folder), {Path("hf/" + second), "no tensor", index});
  const auto edit = [&](const std::function<void(json&)>& change) {
    CopyOf("wide");
    json all = json::parse(Slurp(index));
    change(all);
    Write("hf/model.safetensors.index.json", all.dump());
    return Refused(folder);
  };
  ExpectParts(edit([](json& all) { all["weight_map"].erase("model.final_norm.weight"); }),
              {"model-00003-of-00003", "\"model.final_norm.weight\" is not in " + index});
  ExpectParts(edit([](json& all) { all.erase("weight_map"); }), {index, "weight_map: is missing"});
  ExpectParts(edit([](json& all) { all["weight_map"] = 5; }), {index, "weight_map = 5"});
  ExpectParts(edit([](json& all) { all["weight_map"]["x"] = "../x.safetensors"; }),
              {index, "weight_map.x = \"../x.safetensors\": not the name of a file"});
  ExpectParts(edit([](json& all) { all["weight_map"]["x"] = 7; }), {index, "weight_map.x = 7"});
}

TEST_F(HuggingFaceTest, RefusesAnOutputThatExists) {
  const std::string taken = Write("taken", "kept");
  ExpectParts(BadInput([&] { ImportHuggingFace(Golden("small"), taken); }), {taken, "exists"});
  ImportHuggingFace(Golden("small"), Path("checkpoint"));
  ExpectParts(BadInput([&] { ExportHuggingFace(Path("checkpoint"), taken, {}); }),
              {taken, "exists"});
  ExpectParts(
      BadInput([&] { ExportHuggingFace(Path("checkpoint"), Path("hf"), {.shard_bytes = 0}); }),
      {"--shard-size"});
  EXPECT_EQ(Slurp(taken), "kept");
  EXPECT_FALSE(fs::exists(Path("hf")));
}

TEST_F(HuggingFaceTest, ExportOfADamagedCheckpointLeavesNothing) {
  ImportHuggingFace(Golden("small"), Path("checkpoint"));
  fs::resize_file(Path("checkpoint/model-00000-of-00001.safetensors"), 90000);
  ExpectParts(BadInput([&] { ExportHuggingFace(Path("checkpoint"), Path("out/hf"), {}); }),
              {"model-00000-of-00001.safetensors", "damaged"});
  EXPECT_TRUE(fs::is_empty(Path("out")));
}

TEST(HuggingFaceFamilyTest, SaysWhatAModelLacks) {
  config::Config good;
  ApplySettings(
      {"model.vocab_size=64", "model.width=32", "model.depth=3",
       "model.pattern=recurrent+geglu,local_attention+geglu", "model.embedding_scale=SQRT_WIDTH",
       "model.logit_soft_cap=30", "model.recurrent.width=48", "model.recurrent.gate_blocks=4",
       "model.attention.heads=4", "model.attention.head_width=8", "model.mlp.width=64"},
      good);
  const auto& family = HuggingFaceFamilies().front();
  const auto obstacle = [&](const std::vector<std::string>& settings) {
    config::Config config = good;
    ApplySettings(settings, config);
    return family.obstacle(config.model());
  };
  EXPECT_EQ(obstacle({}), "");
  // What the pattern does not use does not matter.
  EXPECT_EQ(obstacle({"model.pattern=recurrent+geglu", "model.attention.heads=3"}), "");
  EXPECT_EQ(obstacle({"model.pattern=attention+geglu"}), "model.pattern has \"attention+geglu\"");
  EXPECT_EQ(obstacle({"model.pattern=recurrent"}), "model.pattern has \"recurrent\"");
  EXPECT_EQ(obstacle({"model.embedding_scale=UNSCALED"}),
            "model.embedding_scale is not SQRT_WIDTH");
  EXPECT_EQ(obstacle({"model.norm=SIMPLE_RMS_NORM"}), "model.norm is not RMS_NORM");
  EXPECT_EQ(obstacle({"model.logit_soft_cap=0"}), "model.logit_soft_cap is 0");
  ExpectParts(obstacle({"model.attention.head_width=16"}), {"head_width = 64 is not"});
  ExpectParts(obstacle({"model.recurrent.gate_blocks=16"}), {"model.recurrent.gate_blocks = 16"});
  ExpectParts(obstacle({"model.depth=201"}), {"model.depth = 201"});
}

}  // namespace
}  // namespace eyrie
