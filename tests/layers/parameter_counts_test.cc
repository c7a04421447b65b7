// The models that configuration files describe: how many parameters they have, what these are
// called and how they are cut.
//
//   D model width   R recurrent width   G gate blocks   F MLP width
//   H heads         dh head width       N blocks        V vocabulary
//   E inner width of Mamba and of the mLSTM, S states and K step-size rank of Mamba
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/text.h"
#include "layers/model.h"
#include "layers/registry.h"
#include "tests/layers/config_files.h"

namespace eyrie {
namespace {

// in_y, in_x [R, D] and [R], conv [4, R] and [R], two gates [G, R/G, R/G] and [R], lambda [R],
// out [D, R] and [D].
int64_t RecurrentElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), r = model.recurrent().width();
  const int64_t g = model.recurrent().gate_blocks();
  return 3 * d * r + 2 * r * r / g + 10 * r + d;
}

// q [H dh, D], k and v [dh, D], out [D, H dh] and [D].
int64_t AttentionElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), dh = model.attention().head_width();
  const int64_t h = model.attention().heads();
  return 2 * d * h * dh + 2 * d * dh + d;
}

// Two norms [D]; gate and up [F, D] and [F], down [D, F] and [D].
int64_t NormAndMlpElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), f = model.mlp().width();
  return 2 * d + 3 * d * f + 2 * f + d;
}

// What every family shares: N norms and MLPs, the tied table [V, D] and the last norm [D].
int64_t CommonElements(const config::ModelConfig& model) {
  const int64_t d = model.width();
  return model.depth() * NormAndMlpElements(model) + model.vocab_size() * d + d;
}

int64_t GriffinElements(const config::ModelConfig& model) {
  const int64_t n = model.depth();
  return CommonElements(model) + (n - n / 3) * RecurrentElements(model) +
         n / 3 * AttentionElements(model);
}
int64_t HawkElements(const config::ModelConfig& model) {
  return CommonElements(model) + model.depth() * RecurrentElements(model);
}
int64_t TransformerElements(const config::ModelConfig& model) {
  return CommonElements(model) + model.depth() * AttentionElements(model);
}
// No norm has a weight and nothing a bias. N times q, k, v, gate and out [D, D] and an MLP of gate,
// up and down [F, D]; theta [D] in the first block; the tied table [V, D].
int64_t TransNormerElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), f = model.mlp().width();
  return model.depth() * (5 * d * d + 3 * d * f) + d + model.vocab_size() * d;
}

// N times a norm [D], in [2, E, D], conv [4, E] and [E], xp [K + 2 S, E], dt [E, K] and [E],
// A_log [E, S], D [E], out [D, E]; the tied table and the last norm.
int64_t MambaElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), e = model.mamba().width(), s = model.mamba().states();
  const int64_t k = (d + 15) / 16;
  const int64_t block = d + 3 * e * d + 5 * e + (k + 2 * s) * e + k * e + e + e * s + e;
  return model.depth() * block + model.vocab_size() * d + d;
}

// A norm [D]; up and z [E, D], conv [4, E] and [E], q, k and v [E/4, 4, 4], gates [3, 2, H, E] and
// two of [H], a norm [E], skip [E], down [D, E].
int64_t MlstmElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), e = model.mlstm().width(), h = model.mlstm().heads();
  return d + 2 * e * d + 5 * e + 3 * 4 * e + 6 * h * e + 2 * h + 2 * e + d * e;
}
// Two norms [D]; conv [4, D] and [D], four maps and four of R [H, D/H, D/H], b [4, D], a norm [D];
// gate and up [F, D], down [D, F].
int64_t SlstmElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), h = model.slstm().heads(), f = model.mlp().width();
  return 2 * d + 5 * d + 8 * d * d / h + 4 * d + d + 3 * d * f;
}
// Two norms [D]; q and k [K, D], v and out_gate [E, D], gates [H, D] and [H] each, a norm [E], out
// [D, E]; gate and up [F, D], down [D, F].
int64_t MlstmLargeElements(const config::ModelConfig& model) {
  const int64_t d = model.width(), e = model.mlstm().width(), k = model.mlstm().key_width();
  const int64_t h = model.mlstm().heads(), f = model.mlp().width();
  return 2 * d + 2 * k * d + 2 * e * d + 2 * (h * d + h) + e + d * e + 3 * d * f;
}
// The blocks of the pattern; the last norm and two tables [V, D].
int64_t XlstmElements(const config::ModelConfig& model) {
  int64_t elements = model.width() + 2 * model.vocab_size() * model.width();
  for (int64_t block = 0; block < model.depth(); ++block) {
    const auto& entry = model.pattern(static_cast<int>(block % model.pattern_size()));
    elements += entry == "mlstm"             ? MlstmElements(model)
                : entry == "slstm+geglu_erf" ? SlstmElements(model)
                                             : MlstmLargeElements(model);
  }
  return elements;
}

using Formula = int64_t (*)(const config::ModelConfig&);

// By folder. A family of its own pair of mixers adds its line here.
Formula FormulaOf(const std::string& name) {
  static const std::map<std::string, Formula> formulas = {{"griffin", GriffinElements},
                                                          {"hawk", HawkElements},
                                                          {"mamba", MambaElements},
                                                          {"transformer", TransformerElements},
                                                          {"transnormer", TransNormerElements},
                                                          {"xlstm", XlstmElements},
                                                          {"quickstart", GriffinElements}};
  const auto found = formulas.find(name.substr(0, name.find('/')));
  return found == formulas.end() ? nullptr : found->second;
}

std::string Errors(const config::ModelConfig& model, int64_t tensor) {
  ConfigErrors errors;
  ValidateModel(model, tensor, errors);
  std::string text;
  for (const std::string& message : errors.messages()) text += message + "; ";
  return text;
}

TEST(ParameterCounts, EqualClosedFormulasAndTheFilesFirstLines) {
  for (const ConfigFile& file : ReadConfigFiles()) {
    SCOPED_TRACE(file.name);
    const config::ModelConfig& model = file.config.model();
    ASSERT_EQ(Errors(model, 1), "");
    const int64_t elements = Model(model, 1).params().TotalElements();
    if (const Formula formula = FormulaOf(file.name)) {
      EXPECT_EQ(elements, formula(model));
    }
    const std::string first = file.text.substr(0, file.text.find('\n'));
    EXPECT_EQ(first[0], '#') << first;
    EXPECT_NE(first.find(" " + WithCommas(elements) + " parameters."), std::string::npos)
        << first << "\nhas " << WithCommas(elements);
  }
}

// Bodies (all but the vocabulary's tables), of which RecurrentGemma's were checked against the
// released model code.
TEST(ParameterCounts, EqualThePublishedPresets) {
  struct Preset {
    std::string name;
    int64_t body;
  };
  const std::vector<Preset> presets = {
      {"transformer/100m", 80308992},
      {"hawk/100m", 93801216},
      {"griffin/100m", 89303808},
      {"transformer/200m", 141681664},
      {"hawk/200m", 173716480},
      {"griffin/200m", 163038208},
      {"transformer/400m", 316331520},
      {"hawk/400m", 374773248},
      {"griffin/400m", 355292672},
      {"transformer/1.3b", 1120372736},
      {"hawk/1.3b", 1304225792},
      {"griffin/1.3b", 1242941440},
      {"transformer/3b", 2511031296},
      {"hawk/3b", 2996456448},
      {"griffin/3b", 2834648064},
      {"transformer/7b", 5940449280},
      {"hawk/7b", 7176425472},
      {"griffin/7b", 6790182912},
      {"transformer/14b", 11588817920},
      {"hawk/14b", 14811223040},
      {"griffin/14b", 13763941376},
      {"transnormer/385m", 333448192},
      {"transnormer/1b", 889194496},
      {"transnormer/7b", 6574575616},
      {"transnormer/15b", 14423168000},
      {"griffin/recurrentgemma-2b", 2027502080},
      {"griffin/recurrentgemma-9b", 7531401216},
      {"mamba/130m", 90520320},
      {"mamba/370m", 320029696},
      {"mamba/790m", 715974144},
      {"mamba/1.4b", 1269204992},
      {"mamba/2.8b", 2639628800},
      {"xlstm/1.0-125m", 86539200},
      {"xlstm/1.0-350m", 306267520},
      {"xlstm/1.0-760m", 685893504},
      {"xlstm/1.0-1.3b", 1216514432},
      {"xlstm/7.1-125m", 86423984},
      {"xlstm/7.1-350m", 306593104},
      {"xlstm/7.1-760m", 685202256},
      {"xlstm/7.1-1.3b", 1216379216},
      {"xlstm/7b", 6453334528},
  };
  for (const Preset& preset : presets) {
    SCOPED_TRACE(preset.name);
    const config::ModelConfig model = ReadConfigFile(preset.name).config.model();
    const bool gemma = preset.name.find("gemma") != std::string::npos;
    const bool mamba = preset.name.starts_with("mamba"), xlstm = preset.name.starts_with("xlstm");
    EXPECT_EQ(model.vocab_size(), gemma ? 256000 : mamba ? 50280 : xlstm ? 50304 : 32000);
    EXPECT_EQ(model.tied_embedding(), !xlstm);
    EXPECT_EQ(Model(model, 1).params().TotalElements(),
              preset.body + (xlstm ? 2 : 1) * model.vocab_size() * model.width());
  }
  // The released 7B presets have a gate block a head.
  for (const Preset& preset : {Preset{"griffin/7b", 6746568704}, Preset{"hawk/7b", 7112986624}}) {
    config::ModelConfig model = ReadConfigFile(preset.name).config.model();
    model.mutable_recurrent()->set_gate_blocks(32);
    EXPECT_EQ(Model(model, 1).params().TotalElements(),
              preset.body + model.vocab_size() * model.width());
  }
}

// A model that passes ValidateModel can be cut: every parameter divides, and its slices tile it.
TEST(ParameterCounts, EveryAllowedTensorSizeDividesEveryParameter) {
  for (const ConfigFile& file : ReadConfigFiles()) {
    const config::ModelConfig& model = file.config.model();
    for (const int tensor : {1, 2, 4, 8}) {
      SCOPED_TRACE(StrCat(file.name, " on ", tensor));
      if (!Errors(model, tensor).empty()) {
        EXPECT_GT(tensor, 1);
        continue;
      }
      const Model cut(model, tensor);
      std::set<std::string> names;
      for (const ParamSpec& spec : cut.params().specs()) {
        EXPECT_FALSE(spec.name.empty());
        EXPECT_TRUE(names.insert(spec.name).second) << spec.name << " twice";
        int64_t next = 0, held = 0;
        for (int rank = 0; rank < tensor; ++rank) {
          const Slice slice = LocalSlice(spec, tensor, rank);
          held += slice.extent.size();
          if (spec.shard_axis < 0) continue;
          EXPECT_EQ(slice.offset[spec.shard_axis], next) << spec.name;
          next += slice.extent[spec.shard_axis];
        }
        EXPECT_EQ(held, spec.shape.size() * (spec.shard_axis < 0 ? tensor : 1)) << spec.name;
      }
    }
  }
}

// Which sizes those are.
TEST(ParameterCounts, TensorSizesFollowHeadsAndGateBlocks) {
  const auto allowed = [](const std::string& name) {
    const config::ModelConfig model = ReadConfigFile(name).config.model();
    std::vector<int> sizes;
    for (const int tensor : {1, 2, 4, 8}) {
      if (Errors(model, tensor).empty()) sizes.push_back(tensor);
    }
    return sizes;
  };
  using Sizes = std::vector<int>;
  EXPECT_EQ(allowed("griffin/100m"), (Sizes{1, 2}));  // 6 heads
  EXPECT_EQ(allowed("transformer/100m"), (Sizes{1, 2}));
  EXPECT_EQ(allowed("griffin/400m"), (Sizes{1, 2, 4}));  // 12 heads
  EXPECT_EQ(allowed("transformer/400m"), (Sizes{1, 2, 4}));
  EXPECT_EQ(allowed("griffin/recurrentgemma-2b"), (Sizes{1, 2}));  // 10 heads and gate blocks
  for (const std::string size : {"200m", "1.3b", "3b", "7b", "14b"}) {
    EXPECT_EQ(allowed("griffin/" + size), (Sizes{1, 2, 4, 8})) << size;
    EXPECT_EQ(allowed("hawk/" + size), (Sizes{1, 2, 4, 8})) << size;
    EXPECT_EQ(allowed("transformer/" + size), (Sizes{1, 2, 4, 8})) << size;
  }
  for (const std::string size : {"130m", "370m", "790m", "1.4b", "2.8b", "7b"}) {
    EXPECT_EQ(allowed("mamba/" + size), (Sizes{1, 2, 4, 8})) << size;
  }
  for (const std::string size : {"125m", "350m", "760m", "1.3b", "2.7b"}) {  // 4 heads
    EXPECT_EQ(allowed("xlstm/1.0-" + size), (Sizes{1, 2, 4})) << size;
    EXPECT_EQ(allowed("xlstm/7.1-" + size), (Sizes{1, 2, 4})) << size;
  }
  EXPECT_EQ(allowed("xlstm/7b"), (Sizes{1, 2, 4, 8}));
  EXPECT_EQ(allowed("xlstm/14b"), (Sizes{1, 2, 4, 8}));
  EXPECT_EQ(allowed("griffin/recurrentgemma-9b"), (Sizes{1, 2, 4, 8}));
  for (const std::string size : {"385m", "1b", "7b", "15b"}) {
    EXPECT_EQ(allowed("transnormer/" + size), (Sizes{1, 2, 4, 8})) << size;
  }
  for (const std::string name :
       {"griffin/tiny", "hawk/tiny", "transformer/tiny", "transnormer/tiny", "xlstm/tiny",
        "xlstm/1.0-tiny", "xlstm/0.1-tiny", "xlstm/large-tiny"}) {
    EXPECT_EQ(allowed(name), (Sizes{1, 2, 4})) << name;
  }
  EXPECT_EQ(allowed("quickstart"), (Sizes{1, 2, 4}));
}

struct Expected {
  std::string name;
  Shape shape;
  int shard_axis;
  bool decays;
  bool partial_gradient = false;
};

void ExpectParameters(const std::string& file, const std::vector<Expected>& expected) {
  const Model model(ReadConfigFile(file).config.model(), 1);
  std::map<std::string, ParamSpec> specs;
  for (const ParamSpec& spec : model.params().specs()) specs[spec.name] = spec;
  EXPECT_EQ(specs.size(), expected.size());
  for (const Expected& item : expected) {
    ASSERT_TRUE(specs.contains(item.name)) << item.name;
    const ParamSpec& spec = specs[item.name];
    EXPECT_EQ(spec.shape, item.shape)
        << item.name << " " << spec.shape.ToString() << ", not " << item.shape.ToString();
    EXPECT_EQ(spec.shard_axis, item.shard_axis) << item.name;
    EXPECT_EQ(spec.weight_decay, item.decays) << item.name;
    EXPECT_EQ(spec.partial_gradient, item.partial_gradient) << item.name;
  }
}

TEST(ParameterNames, OfAGriffinAreTheDocumentedOnes) {
  constexpr int64_t kD = 2048, kR = 2560, kG = 16, kF = 6144, kDh = 128, kV = 32000;
  std::vector<Expected> expected = {{"tok.w", {kV, kD}, 0, true}};
  const auto add = [&](const std::string& prefix, const std::vector<Expected>& list) {
    for (Expected item : list) {
      item.name = prefix + item.name;
      expected.push_back(item);
    }
  };
  const std::vector<Expected> recurrent = {
      {"norm_a.w", {kD}, -1, false},
      {"rec.in_y.w", {kR, kD}, 0, true},
      {"rec.in_y.b", {kR}, 0, false},
      {"rec.in_x.w", {kR, kD}, 0, true},
      {"rec.in_x.b", {kR}, 0, false},
      {"rec.conv.w", {4, kR}, 1, true},
      {"rec.conv.b", {kR}, 0, false},
      {"rec.gate_i.w", {kG, kR / kG, kR / kG}, 0, true},
      {"rec.gate_i.b", {kG, kR / kG}, 0, false},
      {"rec.gate_r.w", {kG, kR / kG, kR / kG}, 0, true},
      {"rec.gate_r.b", {kG, kR / kG}, 0, false},
      {"rec.lambda", {kR}, 0, false},
      {"rec.out.w", {kD, kR}, 1, true},
      {"rec.out.b", {kD}, -1, false},
  };
  const std::vector<Expected> attention = {
      {"norm_a.w", {kD}, -1, false},
      {"att.q.w", {kD, kD}, 0, true},
      {"att.k.w", {kDh, kD}, -1, true, /*partial_gradient=*/true},
      {"att.v.w", {kDh, kD}, -1, true, /*partial_gradient=*/true},
      {"att.out.w", {kD, kD}, 1, true},
      {"att.out.b", {kD}, -1, false},
  };
  const std::vector<Expected> mlp = {
      {"norm_b.w", {kD}, -1, false},   {"mlp.gate.w", {kF, kD}, 0, true},
      {"mlp.gate.b", {kF}, 0, false},  {"mlp.up.w", {kF, kD}, 0, true},
      {"mlp.up.b", {kF}, 0, false},    {"mlp.down.w", {kD, kF}, 1, true},
      {"mlp.down.b", {kD}, -1, false},
  };
  for (int block = 0; block < 24; ++block) {
    const std::string prefix = StrCat("blocks.", block, ".");
    add(prefix, block % 3 == 2 ? attention : recurrent);
    add(prefix, mlp);
  }
  expected.push_back({"norm_f.w", {kD}, -1, false});

  ExpectParameters("griffin/1.3b", expected);
}

TEST(ParameterNames, OfAMambaAreTheDocumentedOnes) {
  constexpr int64_t kD = 2560, kE = 5120, kS = 16, kK = 160, kV = 50280;
  std::vector<Expected> expected = {{"tok.w", {kV, kD}, 0, true}, {"norm_f.w", {kD}, -1, false}};
  for (int block = 0; block < 64; ++block) {
    const std::string prefix = StrCat("blocks.", block, ".");
    for (Expected item : std::vector<Expected>{{"norm_a.w", {kD}, -1, false},
                                               {"ssm.in.w", {2, kE, kD}, 1, true},
                                               {"ssm.conv.w", {4, kE}, 1, true},
                                               {"ssm.conv.b", {kE}, 0, false},
                                               {"ssm.xp.w", {kK + 2 * kS, kE}, 1, true},
                                               {"ssm.dt.w", {kE, kK}, 0, true},
                                               {"ssm.dt.b", {kE}, 0, false},
                                               {"ssm.A_log", {kE, kS}, 0, false},
                                               {"ssm.D", {kE}, 0, false},
                                               {"ssm.out.w", {kD, kE}, 1, true}}) {
      item.name = prefix + item.name;
      expected.push_back(item);
    }
  }
  ExpectParameters("mamba/2.8b", expected);
}

TEST(ParameterNames, OfAnXlstmAreTheDocumentedOnes) {
  constexpr int64_t kD = 768, kE = 1536, kH = 4, kF = 1024, kV = 50304;
  std::vector<Expected> expected = {
      {"tok.w", {kV, kD}, 0, true}, {"norm_f.w", {kD}, -1, false}, {"head.w", {kV, kD}, 0, true}};
  const std::vector<Expected> mlstm = {
      {"norm_a.w", {kD}, -1, false},
      {"mlstm.up.w", {kE, kD}, 0, true},
      {"mlstm.z.w", {kE, kD}, 0, true},
      {"mlstm.conv.w", {4, kE}, 1, true},
      {"mlstm.conv.b", {kE}, 0, false},
      {"mlstm.q.w", {kE / 4, 4, 4}, 0, true},
      {"mlstm.k.w", {kE / 4, 4, 4}, 0, true},
      {"mlstm.v.w", {kE / 4, 4, 4}, 0, true},
      {"mlstm.gates.w", {3, 2, kH, kE}, 3, true},
      {"mlstm.gate_i.b", {kH}, 0, false},
      {"mlstm.gate_f.b", {kH}, 0, false},
      {"mlstm.norm.w", {kH, kE / kH}, 0, false},
      {"mlstm.skip", {kE}, 0, false},
      {"mlstm.down.w", {kD, kE}, 1, true},
  };
  const std::vector<Expected> slstm = {
      {"norm_a.w", {kD}, -1, false},
      {"slstm.conv.w", {4, kD}, 1, true},
      {"slstm.conv.b", {kD}, 0, false},
      {"slstm.if.w", {kH, 2, kD / kH, kD / kH}, 0, true},
      {"slstm.zo.w", {kH, 2, kD / kH, kD / kH}, 0, true},
      {"slstm.r.w", {kH, kD / kH, 4, kD / kH}, 0, true},
      {"slstm.b", {kH, 4, kD / kH}, 0, false},
      {"slstm.norm.w", {kH, kD / kH}, 0, false},
      {"norm_b.w", {kD}, -1, false},
      {"mlp.gate.w", {kF, kD}, 0, true},
      {"mlp.up.w", {kF, kD}, 0, true},
      {"mlp.down.w", {kD, kF}, 1, true},
  };
  for (int block = 0; block < 24; ++block) {
    for (Expected item : block == 3 || block == 20 ? slstm : mlstm) {
      item.name = StrCat("blocks.", block, ".", item.name);
      expected.push_back(item);
    }
  }
  ExpectParameters("xlstm/7.1-125m", expected);
}

}  // namespace
}  // namespace eyrie
