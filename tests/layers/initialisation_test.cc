// What a Griffin starts from, on any number of tensor ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "layers/model.h"
#include "tests/layers/config_files.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr uint64_t kSeed = 5;

template <class T>
class InitialisationTest : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(InitialisationTest, Types);

TYPED_TEST(InitialisationTest, ShardsAreSlicesOfTheWhole) {
  using T = TypeParam;
  const config::ModelConfig config = ReadConfigFile("griffin/tiny").config.model();
  const Model model(config, 1);
  const Mesh one;
  ParamStore whole(model.params(), one, DTypeOf<T>::value, /*with_gradients=*/false);
  whole.Initialise(kSeed);
  for (const int tensor : {1, 2, 4}) {
    RunRanks(tensor, [&](std::unique_ptr<Communicator> world) {
      const Mesh mesh({1, 1, tensor}, std::move(world));
      const Model mine(config, tensor);
      ParamStore store(mine.params(), mesh, DTypeOf<T>::value, /*with_gradients=*/false);
      store.Initialise(kSeed);
      for (ParamId id = 0; id < static_cast<ParamId>(mine.params().specs().size()); ++id) {
        const ParamSpec& spec = mine.params().spec(id);
        const Slice all = LocalSlice(spec, 1, 0), part = store.slice(id);
        const OwnedTensor wanted(DTypeOf<T>::value, part.extent);
        CopyPart(part, all, whole.value(id).raw, part, wanted.tensor.raw, sizeof(T));
        for (int64_t i = 0; i < part.extent.size(); ++i) {
          ASSERT_EQ(store.value(id).template data<T>()[i], wanted.tensor.data<T>()[i])
              << spec.name << " at " << i << " of rank " << mesh.tensor().rank() << " of "
              << tensor;
        }
      }
    });
  }
}

// Standard deviations by the end of a parameter's name; D 192, R 256, G 8, F 576, N 6.
TEST(Initialisation, HasTheDocumentedMoments) {
  const Model model(ReadConfigFile("quickstart").config.model(), 1);
  const Mesh one;
  ParamStore store(model.params(), one, DType::kF64, /*with_gradients=*/false);
  store.Initialise(kSeed);
  const std::map<std::string, double> deviations = {
      {"tok.w", std::sqrt(1.0 / 192)},         {"rec.in_y.w", std::sqrt(1.0 / 192)},
      {"rec.in_x.w", std::sqrt(1.0 / 192)},    {"rec.conv.w", 0.05},
      {"rec.gate_i.w", std::sqrt(8.0 / 256)},  {"rec.gate_r.w", std::sqrt(8.0 / 256)},
      {"rec.out.w", std::sqrt(2.0 / 6 / 256)}, {"att.q.w", std::sqrt(1.0 / 192)},
      {"att.k.w", std::sqrt(1.0 / 192)},       {"att.v.w", std::sqrt(1.0 / 192)},
      {"att.out.w", std::sqrt(2.0 / 6 / 192)}, {"mlp.gate.w", std::sqrt(1.0 / 192)},
      {"mlp.up.w", std::sqrt(1.0 / 192)},      {"mlp.down.w", std::sqrt(2.0 / 6 / 576)},
  };
  for (ParamId id = 0; id < static_cast<ParamId>(model.params().specs().size()); ++id) {
    std::string name = model.params().spec(id).name;
    if (name.starts_with("blocks.")) name = name.substr(name.find('.', 7) + 1);
    if (name == "rec.lambda") continue;
    const auto found = deviations.find(name);
    const double deviation = found == deviations.end() ? 0.0 : found->second;
    const double* values = store.value(id).data<double>();
    const auto count = static_cast<double>(store.value(id).size());
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < store.value(id).size(); ++i) {
      sum += values[i];
      squares += values[i] * values[i];
    }
    // Five standard errors.
    EXPECT_NEAR(sum / count, 0.0, 5 * deviation / std::sqrt(count)) << name;
    EXPECT_NEAR(std::sqrt(squares / count), deviation, 5 * deviation / std::sqrt(2 * count))
        << name;
  }
}

// Of Mamba 130M: D 768, E 1536, rank 48, N 24. Uniform draws have their bound divided by sqrt(3) as
// standard deviation.
TEST(Initialisation, OfMambaIsTheReleasedOne) {
  const Model model(ReadConfigFile("mamba/130m").config.model(), 1);
  const std::map<std::string, double> bounds = {{"in.w", 1 / std::sqrt(768)},
                                                {"conv.w", 0.5},
                                                {"conv.b", 0.5},
                                                {"xp.w", 1 / std::sqrt(1536)},
                                                {"dt.w", 1 / std::sqrt(48)},
                                                {"out.w", 1 / std::sqrt(1536 * 24)}};
  for (const ParamSpec& spec : model.params().specs()) {
    if (!spec.name.starts_with("blocks.7.ssm.")) continue;
    const std::string name = spec.name.substr(13);
    const Random random(kSeed, spec.name);
    const auto count = static_cast<double>(spec.shape.size());
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < spec.shape.size(); ++i) {
      const double value = spec.init(random, static_cast<uint64_t>(i));
      if (name == "A_log") {
        ASSERT_EQ(value, std::log(i % 16 + 1));
      } else if (name == "D") {
        ASSERT_EQ(value, 1);
      } else if (name == "dt.b") {
        // log-uniform step sizes
        const double delta = std::log1p(std::exp(value));
        ASSERT_GE(delta, 0.001 * (1 - 1e-9));
        ASSERT_LE(delta, 0.1 * (1 + 1e-9));
        sum += std::log(delta / 0.001) / std::log(100);
      } else {
        ASSERT_LE(std::abs(value), bounds.at(name)) << name;
        sum += value;
        squares += value * value;
      }
    }
    if (name == "dt.b") {
      EXPECT_NEAR(sum / count, 0.5, 5 * std::sqrt(1.0 / 12 / count));
    }
    if (!bounds.contains(name)) continue;
    const double deviation = bounds.at(name) / std::sqrt(3);
    EXPECT_NEAR(sum / count, 0, 5 * deviation / std::sqrt(count)) << name;
    EXPECT_NEAR(std::sqrt(squares / count), deviation, 5 * deviation / std::sqrt(2 * count))
        << name;
  }
}

// Of xLSTM[7:1] 125M: D 768, N 24, 4 heads; block 20 is an sLSTM's.
TEST(Initialisation, OfXlstmIsTheReleasedOne) {
  const Model model(ReadConfigFile("xlstm/7.1-125m").config.model(), 1);
  const double in = std::sqrt(2.0 / (5 * 768)), out = 2 / (24 * std::sqrt(768)), zero = 0;
  const double uniform = 0.5 / std::sqrt(3);
  const std::map<std::string, double> deviations = {
      {"tok.w", in},
      {"head.w", in},
      {"blocks.7.mlstm.up.w", in},
      {"blocks.7.mlstm.z.w", in},
      {"blocks.7.mlstm.conv.w", uniform},
      {"blocks.7.mlstm.conv.b", uniform},
      {"blocks.7.mlstm.q.w", in},
      {"blocks.7.mlstm.k.w", in},
      {"blocks.7.mlstm.v.w", in},
      {"blocks.7.mlstm.gates.w", zero},
      {"blocks.7.mlstm.norm.w", zero},
      {"blocks.7.mlstm.down.w", out},
      {"blocks.20.slstm.conv.w", uniform},
      {"blocks.20.slstm.conv.b", uniform},
      {"blocks.20.slstm.if.w", in},
      {"blocks.20.slstm.zo.w", in},
      {"blocks.20.slstm.r.w", zero},
      {"blocks.20.slstm.norm.w", zero},
      {"blocks.20.mlp.gate.w", in},
      {"blocks.20.mlp.up.w", in},
      {"blocks.20.mlp.down.w", out},
  };
  size_t seen = 0;
  for (const ParamSpec& spec : model.params().specs()) {
    const Random random(kSeed, spec.name);
    const auto value = [&](int64_t i) { return spec.init(random, static_cast<uint64_t>(i)); };
    if (spec.name == "blocks.7.mlstm.gate_f.b") {
      for (const int64_t head : {0, 1, 2, 3}) EXPECT_DOUBLE_EQ(value(head), 3 + head);
    } else if (spec.name == "blocks.7.mlstm.skip") {
      EXPECT_EQ(value(100), 1);
    } else if (spec.name == "blocks.20.slstm.b") {
      // Of each head the gates i, f, z and o, of 192 units.
      for (const int64_t unit : {0, 1, 95, 191}) {
        for (const int64_t head : {0, 3}) {
          const double expected = 5 - 12 * std::pow(unit / 191.0, 0.3 + 1.3 * 20 / 23);
          EXPECT_DOUBLE_EQ(value((head * 4 + 1) * 192 + unit), expected);
          for (const int64_t gate : {0, 2, 3}) EXPECT_EQ(value((head * 4 + gate) * 192 + unit), 0);
        }
      }
    }
    if (!deviations.contains(spec.name)) continue;
    ++seen;
    const double deviation = deviations.at(spec.name);
    const int64_t count = std::min<int64_t>(spec.shape.size(), 20000);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) {
      sum += value(i);
      squares += value(i) * value(i);
    }
    const auto n = static_cast<double>(count);
    EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n)) << spec.name;
    EXPECT_NEAR(std::sqrt(squares / n), deviation, 5 * deviation / std::sqrt(2 * n)) << spec.name;
  }
  EXPECT_EQ(seen, deviations.size());
}

// exp(-softplus(lambda)), the decay before its exponent 8 r, lies in [0.9, 0.999], and its square
// is uniform there.
TEST(Initialisation, DecaysAreUniformByArea) {
  const Model model(ReadConfigFile("griffin/1.3b").config.model(), 1);
  constexpr double kInner = 0.9 * 0.9, kOuter = 0.999 * 0.999;
  constexpr int kBins = 16;
  double count = 0, sum = 0;
  int bins[kBins] = {};
  for (const ParamSpec& spec : model.params().specs()) {
    if (!spec.name.ends_with("rec.lambda")) continue;
    const Random random(kSeed, spec.name);
    for (int64_t i = 0; i < spec.shape.size(); ++i) {
      const double lambda = spec.init(random, static_cast<uint64_t>(i));
      const double decay = std::exp(-std::log1p(std::exp(lambda)));
      ASSERT_GE(decay, 0.9);
      ASSERT_LE(decay, 0.999 + 1e-8);
      const double position = (decay * decay - kInner) / (kOuter - kInner);
      ++bins[std::min(kBins - 1, static_cast<int>(position * kBins))];
      sum += position;
      ++count;
    }
  }
  ASSERT_EQ(count, 16 * 2560);
  EXPECT_NEAR(sum / count, 0.5, 5 * std::sqrt(1.0 / 12 / count));
  for (const int bin : bins) {
    EXPECT_NEAR(bin, count / kBins, 5 * std::sqrt(count / kBins));
  }
}

}  // namespace
}  // namespace eyrie
