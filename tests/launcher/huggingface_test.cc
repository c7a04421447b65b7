// Hugging Face folders: what goes in comes out again. huggingface_refusal_test.cc has what is
// refused, tests/cli/huggingface_test.cc the logits.
#include "launcher/huggingface.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "launcher/checkpoint.h"
#include "launcher/config.h"
#include "launcher/huggingface_family.h"
#include "launcher/manifest.h"
#include "launcher/reshard.h"
#include "tests/launcher/huggingface_util.h"
#include "tests/launcher/sentencepiece_model.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

// Every bit of every tensor, whatever file it is in.
TEST_F(HuggingFaceTest, ExportGivesBackWhatWasImported) {
  struct Model {
    std::string family, name;
    int64_t parameters;
  };
  for (const Model& model :
       {Model{"recurrent_gemma", "small", 42592}, Model{"recurrent_gemma", "wide", 34600},
        Model{"mamba", "small", 31936}, Model{"mamba", "wide", 32424},
        Model{"xlstm", "small", 53964}, Model{"xlstm", "wide", 35064}}) {
    SCOPED_TRACE(model.family + " " + model.name);
    const std::string name = model.family + "-" + model.name;
    const fs::path golden = Golden(model.name, model.family);
    const HuggingFaceSummary imported = ImportHuggingFace(golden, Path(name));
    EXPECT_EQ(imported.model_type, model.family);
    EXPECT_EQ(imported.parameters, model.parameters);
    VerifyCheckpoint(Path(name));
    ExportHuggingFace(Path(name), Path(name + "-hf"), {});
    EXPECT_TRUE(fs::exists(Path(name + "-hf/model.safetensors")));
    EXPECT_EQ(ReadFolder(Path(name + "-hf")), ReadFolder(golden));
    EXPECT_EQ(SafetensorsFile(Path(name + "-hf/model.safetensors")).metadata().at("format"), "pt");

    // Each field that both write has the same value.
    const auto ours = nlohmann::json::parse(Slurp(Path(name + "-hf/config.json")));
    const auto theirs = nlohmann::json::parse(Slurp(golden / "config.json"));
    for (const auto& item : theirs.items()) {
      if (ours.contains(item.key()) && !item.key().ends_with("_token_id")) {
        EXPECT_EQ(ours.at(item.key()), item.value()) << item.key();
      }
    }
  }
}

TEST_F(HuggingFaceTest, ImportGivesBackWhatWasExported) {
  ImportHuggingFace(Golden("wide"), Path("first"));
  // From any layout.
  config::ParallelConfig parallel;
  parallel.set_tensor(2);
  ReshardCheckpoint(Path("first"), Path("resharded"), parallel);
  ExportHuggingFace(Path("resharded"), Path("hf"), {});
  ImportHuggingFace(Path("hf"), Path("second"));
  const std::string shard = "/model-00000-of-00001.safetensors";
  EXPECT_EQ(Slurp(Path("first" + shard)), Slurp(Path("second" + shard)));
  EXPECT_EQ(Slurp(Path("first/manifest.textproto")), Slurp(Path("second/manifest.textproto")));
}

// A number that transformers leaves to the model's width is imported as what it is.
TEST_F(HuggingFaceTest, AutomaticRankOfMamba) {
  const auto golden = nlohmann::json::parse(Slurp(Golden("small", "mamba") / "config.json"));
  ASSERT_EQ(golden.at("time_step_rank"), 2);  // of 32 channels
  ImportHuggingFace(WithConfig({{"time_step_rank", "auto"}}, "mamba"), Path("checkpoint"));
  EXPECT_EQ(ReadManifest(Path("checkpoint")).config().model().mamba().dt_rank(), 2);
  ExportHuggingFace(Path("checkpoint"), Path("exported"), {});
  EXPECT_EQ(ReadFolder(Path("exported")), ReadFolder(Golden("small", "mamba")));
  EXPECT_EQ(nlohmann::json::parse(Slurp(Path("exported/config.json"))).at("time_step_rank"), 2);
}

TEST_F(HuggingFaceTest, ExportDividesLargeModels) {
  ImportHuggingFace(Golden("wide"), Path("checkpoint"));
  for (const int64_t limit : {1, 3000, 50000}) {
    const fs::path folder = Path(StrCat("hf-", limit));
    ExportHuggingFace(Path("checkpoint"), folder, {.shard_bytes = limit});
    EXPECT_EQ(ReadFolder(folder), ReadFolder(Golden("wide")));
    const auto index = nlohmann::json::parse(Slurp(folder / "model.safetensors.index.json"));
    EXPECT_EQ(index.at("metadata").at("total_size"), 34600 * 4);
    size_t files = 0;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() != ".safetensors") continue;
      ++files;
      const SafetensorsFile file(entry.path());
      EXPECT_TRUE(file.entries().size() == 1 ||
                  file.size() - static_cast<int64_t>(file.Header().size()) <= limit);
    }
    EXPECT_EQ(files == index.at("weight_map").size(), limit == 1);
    ImportHuggingFace(folder, Path(StrCat("again-", limit)));
    const std::string shard = "/model-00000-of-00001.safetensors";
    EXPECT_EQ(Slurp(Path(StrCat("again-", limit) + shard)), Slurp(Path("checkpoint" + shard)));
  }
}

TEST_F(HuggingFaceTest, BFloat16GoesThroughUnchanged) {
  const fs::path folder = WithTensors([](RawTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      std::string halves;
      for (size_t at = 0; at < tensor.bytes.size(); at += 4) {
        float value;
        std::memcpy(&value, tensor.bytes.data() + at, sizeof value);
        const BFloat16 rounded(value);
        halves.append(reinterpret_cast<const char*>(&rounded.bits), 2);
      }
      tensor = {"BF16", tensor.shape, halves};
    }
  });
  ImportHuggingFace(folder, Path("checkpoint"));
  ExportHuggingFace(Path("checkpoint"), Path("again"), {.dtype = DType::kBF16});
  EXPECT_EQ(ReadFolder(Path("again")), ReadFolder(folder));
  EXPECT_EQ(nlohmann::json::parse(Slurp(Path("again/config.json"))).at("torch_dtype"), "bfloat16");
}

TEST_F(HuggingFaceTest, Float16IsExact) {
  const std::vector<std::pair<uint16_t, float>> values = {
      {0x0000, 0.0f},        {0x8000, -0.0f},    {0x3c00, 1.0f},     {0xc000, -2.0f},
      {0x3555, 0x1.554p-2f}, {0x7bff, 65504.0f}, {0x0400, 0x1p-14f}, {0x03ff, 0x1.ff8p-15f},
      {0x8001, -0x1p-24f},   {0x7c00, INFINITY}, {0xfc00, -INFINITY}};
  const fs::path folder = WithTensors([&](RawTensors& tensors) {
    std::string halves(2 * 32, '\0');
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(halves.data() + 2 * i, &values[i].first, 2);
    }
    tensors.at("model.final_norm.weight") = {"F16", {32}, halves};
  });
  ImportHuggingFace(folder, Path("checkpoint"));
  RawTensors stored;
  ReadRaw(Path("checkpoint/model-00000-of-00001.safetensors"), stored);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::memcmp(stored.at("norm_f.w").bytes.data() + 4 * i, &values[i].second, 4), 0)
        << std::hex << values[i].first;
  }
}

TEST_F(HuggingFaceTest, CarriesTheTokenizer) {
  const fs::path folder = CopyOf("small");
  const std::string model = TrainSentencePiece(Path("spm"));
  fs::copy(model, folder / "tokenizer.model");
  // 320 pieces, but 64 rows.
  EXPECT_NE(Refused(folder).find("more than model.vocab_size"), std::string::npos);

  nlohmann::json config = nlohmann::json::parse(Slurp(folder / "config.json"));
  config["vocab_size"] = 320;
  Write("hf/config.json", config.dump());
  RawTensors tensors = ReadFolder(folder);
  tensors.at("model.embed_tokens.weight") = {"F32", {320, 32}, std::string(320 * 32 * 4, '\0')};
  Write("hf/model.safetensors", RawFile(tensors));
  ImportHuggingFace(folder, Path("checkpoint"));
  VerifyCheckpoint(Path("checkpoint"));
  const config::Manifest manifest = ReadManifest(Path("checkpoint"));
  EXPECT_EQ(manifest.config().data().tokenizer(),
            "sentencepiece:" + Path("checkpoint/tokenizer.model"));
  ExportHuggingFace(Path("checkpoint"), Path("again"), {});
  EXPECT_EQ(Slurp(Path("again/tokenizer.model")), Slurp(model));
  EXPECT_EQ(nlohmann::json::parse(Slurp(Path("again/config.json"))).at("eos_token_id"), 2);

  Write("hf/tokenizer.model", "not a model");
  EXPECT_NE(Refused(folder).find("tokenizer.model: not a SentencePiece model"), std::string::npos);
}

// The file that was published with the 2B model, which transformers before version 5 wrote.
TEST_F(HuggingFaceTest, ReadsThePublishedConfiguration) {
  const std::string path = Write("config.json", R"({
    "_block_types": ["recurrent", "recurrent", "attention"],
    "architectures": ["RecurrentGemmaForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.0, "attention_window_size": 2048,
    "block_types": ["recurrent", "recurrent", "attention"], "bos_token_id": 2, "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": true, "eos_token_id": 1,
    "final_w_init_variance_scale": 0.07692307692307693, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2560, "intermediate_size": 15360,
    "logits_soft_cap": 30.0, "lru_width": 2560, "model_type": "recurrent_gemma",
    "num_attention_heads": 10, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "torch_dtype": "float32", "transformers_version": "4.41.0.dev0", "use_cache": true,
    "vocab_size": 256000, "w_init_variance_scale": 0.01})");
  const HuggingFaceFamily& family = HuggingFaceFamilies().front();
  config::Config config;
  *config.mutable_model() = family.read(HuggingFaceConfig(path));
  Resolve(config, 1);
  config::Config ours = LoadConfig(EYRIE_SOURCE_DIR "/configs/griffin/recurrentgemma-2b.textproto");
  Resolve(ours, 1);
  EXPECT_EQ(ToText(config.model()), ToText(ours.model()));

  // And what we write is read as the same model; so are the defaults of transformers.
  const std::string written = Write("written.json", family.write(ours.model()).dump());
  EXPECT_EQ(ToText(family.read(HuggingFaceConfig(written))), ToText(ours.model()));
  const std::string sparse =
      Write("sparse.json",
            R"({"num_key_value_heads": 1, "intermediate_size": 15360, "lru_width": null})");
  config::Config defaults;
  *defaults.mutable_model() = family.read(HuggingFaceConfig(sparse));
  Resolve(defaults, 1);
  EXPECT_EQ(ToText(defaults.model()), ToText(ours.model()));
}

// With the fields of the released models that say nothing about the shape.
TEST_F(HuggingFaceTest, ReadsMambasConfiguration) {
  const std::string path = Write("config.json", R"({
    "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 5120,
    "d_model": 2560, "eos_token_id": 0, "expand": 2, "fused_add_norm": true, "hidden_act": "silu",
    "hidden_size": 2560, "initializer_range": 0.1, "intermediate_size": 5120,
    "layer_norm_epsilon": 1e-05, "model_type": "mamba", "n_layer": 64, "num_hidden_layers": 64,
    "pad_token_id": 0, "rescale_prenorm_residual": false, "residual_in_fp32": true,
    "rms_norm": true, "ssm_cfg": {}, "state_size": 16, "time_step_rank": 160,
    "torch_dtype": "float32", "use_bias": false, "use_cache": true, "use_conv_bias": true,
    "vocab_size": 50280})");
  const auto& families = HuggingFaceFamilies();
  const auto family = std::find_if(families.begin(), families.end(),
                                   [](const auto& f) { return f.model_type == "mamba"; });
  ASSERT_NE(family, families.end());
  const auto resolved = [&](const std::string& file) {
    config::Config config;
    *config.mutable_model() = family->read(HuggingFaceConfig(file));
    Resolve(config, 1);
    CompleteModel(*config.mutable_model());
    return ToText(config.model());
  };
  config::Config ours = LoadConfig(EYRIE_SOURCE_DIR "/configs/mamba/2.8b.textproto");
  Resolve(ours, 1);
  EXPECT_EQ(resolved(path), ToText(ours.model()));
  EXPECT_EQ(resolved(Write("written.json", family->write(ours.model()).dump())),
            ToText(ours.model()));
  EXPECT_EQ(resolved(Write("sparse.json", R"({"hidden_size": 2560, "num_hidden_layers": 64,
                                              "time_step_rank": "auto"})")),
            ToText(ours.model()));

  const auto obstacle = [&](const std::vector<std::string>& settings) {
    config::Config config = ours;
    ApplySettings(settings, config);
    return family->obstacle(config.model());
  };
  EXPECT_EQ(obstacle({}), "");
  EXPECT_EQ(obstacle({"model.pattern=mamba,mamba+geglu"}), "model.pattern has \"mamba+geglu\"");
  EXPECT_EQ(obstacle({"model.embedding_scale=SQRT_WIDTH"}),
            "model.embedding_scale is not UNSCALED");
  EXPECT_EQ(obstacle({"model.logit_soft_cap=30"}), "model.logit_soft_cap is not 0");
  EXPECT_EQ(obstacle({"model.norm=LAYER_NORM"}), "model.norm is not RMS_NORM");
  EXPECT_EQ(obstacle({"model.tied_embedding=false"}), "model.tied_embedding is false");
  EXPECT_EQ(obstacle({"model.mamba.width=5000"}),
            "model.mamba.width = 5000 is not a multiple of model.width = 2560");
}

// With the fields of the released model that say how to compute.
TEST_F(HuggingFaceTest, ReadsXlstmsConfiguration) {
  const std::string path = Write("config.json", R"({
    "add_out_norm": true, "architectures": ["xLSTMForCausalLM"],
    "autocast_kernel_dtype": "bfloat16", "bos_token_id": 0, "chunk_size": 64,
    "chunkwise_kernel": "chunkwise--triton_xl_chunk", "embedding_dim": 4096, "eos_token_id": 2,
    "eps": 1e-06, "ffn_proj_factor": 2.667, "ffn_round_up_to_multiple_of": 64,
    "gate_soft_cap": 15.0, "inference_state_dtype": "float32", "mode": "inference",
    "model_type": "xlstm", "norm_eps": 1e-06, "norm_reduction_force_float32": true,
    "num_blocks": 32, "num_heads": 8, "output_logit_soft_cap": 30.0, "qk_dim_factor": 0.5,
    "return_last_states": true, "sequence_kernel": "native_sequence__triton",
    "step_kernel": "triton", "tie_word_embeddings": false, "torch_dtype": "float32",
    "use_bias": false, "use_cache": true, "v_dim_factor": 1.0, "vocab_size": 50304,
    "weight_mode": "single"})");
  const auto& families = HuggingFaceFamilies();
  const auto family = std::find_if(families.begin(), families.end(),
                                   [](const auto& f) { return f.model_type == "xlstm"; });
  ASSERT_NE(family, families.end());
  const auto resolved = [&](const std::string& file) {
    config::Config config;
    *config.mutable_model() = family->read(HuggingFaceConfig(file));
    Resolve(config, 1);
    return ToText(config.model());
  };
  config::Config ours = LoadConfig(EYRIE_SOURCE_DIR "/configs/xlstm/7b.textproto");
  Resolve(ours, 1);
  EXPECT_EQ(resolved(path), ToText(ours.model()));
  EXPECT_EQ(resolved(Write("written.json", family->write(ours.model()).dump())),
            ToText(ours.model()));
  EXPECT_EQ(resolved(Write("sparse.json", "{}")), ToText(ours.model()));

  // Widths of any proportion come back.
  for (const int64_t width : {1, 17, 60, 96, 1000}) {
    config::Config odd = ours;
    odd.mutable_model()->set_width(37);
    odd.mutable_model()->mutable_mlp()->set_width(width);
    odd.mutable_model()->mutable_mlstm()->set_width(8 * width);
    odd.mutable_model()->mutable_mlstm()->set_key_width(16 * width);
    EXPECT_EQ(resolved(Write("odd.json", family->write(odd.model()).dump())), ToText(odd.model()))
        << width;
  }

  const auto obstacle = [&](const std::vector<std::string>& settings) {
    config::Config config = ours;
    ApplySettings(settings, config);
    return family->obstacle(config.model());
  };
  EXPECT_EQ(obstacle({}), "");
  EXPECT_EQ(obstacle({"model.pattern=mlstm"}), "model.pattern has \"mlstm\"");
  EXPECT_EQ(obstacle({"model.embedding_scale=SQRT_WIDTH"}),
            "model.embedding_scale is not UNSCALED");
  EXPECT_EQ(obstacle({"model.norm=LAYER_NORM"}), "model.norm is not RMS_NORM");
  EXPECT_EQ(obstacle({"model.tied_embedding=true"}), "model.tied_embedding is true");
  EXPECT_EQ(obstacle({"model.logit_soft_cap=0"}), "model.logit_soft_cap is 0");
  EXPECT_EQ(obstacle({"model.mlstm.gate_soft_cap=0"}), "model.mlstm.gate_soft_cap is 0");
  EXPECT_EQ(obstacle({"model.mlstm.input_gate=SIGMOID"}),
            "model.mlstm.input_gate is not EXPONENTIAL");
  EXPECT_EQ(obstacle({"model.mlstm.forget_gate=EXPONENTIAL"}),
            "model.mlstm.forget_gate is not SIGMOID");
}

TEST_F(HuggingFaceTest, ACopyOfTheEmbeddingIsNoExtraTensor) {
  ImportHuggingFace(WithTensors([](RawTensors& tensors) {
                      tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
                    }),
                    Path("checkpoint"));
  VerifyCheckpoint(Path("checkpoint"));
}

}  // namespace
}  // namespace eyrie
