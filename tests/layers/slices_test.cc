// A batch cut into slices that take turns, against the whole batch at once, in float64.
#include "layers/slices.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tests/layers/layer_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr int64_t kBatch = 6, kTokens = 12;

struct Options {
  MeshShape mesh;
  int slices = 1;
  int64_t chunk = 0;
  Recompute recompute = Recompute::kNothing;
  bool zero = false;
};

struct Outcome {
  double loss = 0.0;
  OwnedTensor gradients;          // rank 0's
  std::vector<std::string> seen;  // by rank 0's observer
};

// Two microbatches; the second one completes the step.
Outcome Train(const config::ModelConfig& config, const Options& options, uint64_t seed) {
  Outcome outcome;
  RunRanks(options.mesh.ranks(), [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh(options.mesh, std::move(world));
    const Model model(config, mesh.shape().tensor, options.recompute);
    ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/true,
                     {.zero = options.zero, .bucket_elements = 48});
    store.Initialise(seed);
    Arena arena;
    eyrie::Run run{mesh, store, arena};
    if (mesh.is_root()) {
      run.observe = [&](Seen, const std::string& layer, const Tensor&) {
        outcome.seen.push_back(layer);
      };
    }
    Slices slices(mesh, options.slices, Device::kCpu, nullptr);
    const int64_t share = kTokens / options.mesh.sequence;
    const OwnedTensor sums(DType::kF64, {2});
    for (const bool last : {false, true}) {
      const Random random(seed, StrCat("data ", mesh.data().rank(), last));
      OwnedTensor tokens(DType::kI32, {kBatch, share}), positions(DType::kI32, {kBatch, share});
      for (int64_t i = 0; i < kBatch * share; ++i) {
        const int64_t t = mesh.sequence().rank() * share + i % share;
        tokens.tensor.data<int32_t>()[i] = static_cast<int32_t>(
            random.Bits(static_cast<uint64_t>(i / share * kTokens + t))[0] % 23);
        positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(t % 7);
      }
      run.positions = positions.tensor;
      const Model::Batch batch{tokens.tensor, tokens.tensor, 1.0 / (kBatch * kTokens), sums.tensor};
      slices.ForwardBackward(model, run, batch, options.chunk, last);
    }
    store.ReduceGrads();
    const double loss = AllReduceValue(mesh.replicas(), ReadLoss(sums.tensor).sum, ReduceOp::kSum);
    if (!mesh.is_root()) return;
    outcome.loss = loss;
    outcome.gradients = Clone(store.flat_grads());
  });
  return outcome;
}

class SlicesTest : public testing::TestWithParam<std::string> {};

TEST_P(SlicesTest, EqualTheWholeBatch) {
  TestRandom random;
  const config::ModelConfig config = SmallModel({GetParam()}, 2);
  for (const MeshShape& mesh :
       {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}, MeshShape{1, 3, 1}, MeshShape{2, 2, 1}}) {
    const Outcome whole = Train(config, {.mesh = mesh}, random.seed());
    for (const int slices : {2, 3}) {
      const Outcome sliced = Train(config, {.mesh = mesh, .slices = slices}, random.seed());
      EXPECT_NEAR(sliced.loss, whole.loss, 1e-12 * whole.loss) << slices;
      EXPECT_LT(RelativeError(sliced.gradients.tensor, whole.gradients.tensor), 1e-12) << slices;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, SlicesTest, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const MixerEntry& entry : MixerRegistry()) {
                             names.push_back(entry.name);
                           }
                           return names;
                         }()),
                         [](const auto& test) { return test.param; });

// Heads and gate blocks that divide by two, and all axes at once.
config::ModelConfig EvenGriffin() {
  config::ModelConfig config = SmallGriffin();
  config.set_vocab_size(24);
  config.mutable_recurrent()->set_gate_blocks(2);
  config.mutable_attention()->set_heads(2);
  return config;
}

void ExpectSlicesEqualTheWholeOnEveryAxis(const config::ModelConfig& config) {
  TestRandom random;
  for (const MeshShape& mesh : {MeshShape{1, 1, 2}, MeshShape{1, 2, 2}, MeshShape{2, 2, 2}}) {
    for (const int64_t chunk : {0, 3}) {
      for (const Recompute recompute : kRecomputeModes) {
        Options options{.mesh = mesh, .chunk = chunk, .recompute = recompute};
        const Outcome whole = Train(config, options, random.seed());
        options.slices = 2;
        const Outcome sliced = Train(config, options, random.seed());
        EXPECT_NEAR(sliced.loss, whole.loss, 1e-12 * whole.loss);
        EXPECT_LT(RelativeError(sliced.gradients.tensor, whole.gradients.tensor), 1e-12);
      }
    }
  }
}

TEST(SlicesGriffinTest, EqualTheWholeBatchOnEveryAxis) {
  ExpectSlicesEqualTheWholeOnEveryAxis(EvenGriffin());
}
TEST(SlicesMambaTest, EqualTheWholeBatchOnEveryAxis) {
  config::ModelConfig config = SmallModel({"mamba"}, 2);
  config.set_vocab_size(24);
  ExpectSlicesEqualTheWholeOnEveryAxis(config);
}

TEST(SlicesXlstmTest, EqualTheWholeBatchOnEveryAxis) {
  for (config::ModelConfig config : {SmallXlstm(), SmallModel({"mlstm_large+swiglu"}, 2)}) {
    config.set_vocab_size(24);
    config.mutable_mlstm()->set_heads(2);
    config.mutable_mlstm()->set_key_width(10);
    config.mutable_slstm()->set_heads(2);
    ExpectSlicesEqualTheWholeOnEveryAxis(config);
  }
}

TEST(SlicesGriffinTest, TheSameTwiceIsBitwiseEqual) {
  TestRandom random;
  for (const bool zero : {false, true}) {
    const Options options{.mesh = {2, 2, 2}, .slices = 3, .zero = zero};
    const Outcome a = Train(EvenGriffin(), options, random.seed());
    const Outcome b = Train(EvenGriffin(), options, random.seed());
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_TRUE(BitwiseEqual(a.gradients.tensor, b.gradients.tensor));
    EXPECT_EQ(a.seen, b.seen);
  }
}

// With messages to wait for, slices walk through the layers side by side; without, one by one.
TEST(SlicesGriffinTest, ObserversSeeEveryLayerOfEverySlice) {
  TestRandom random;
  const auto whole = Train(EvenGriffin(), {.mesh = {1, 1, 2}}, random.seed()).seen;
  auto sliced = Train(EvenGriffin(), {.mesh = {1, 1, 2}, .slices = 2}, random.seed()).seen;
  ASSERT_EQ(sliced.size(), 2 * whole.size());
  EXPECT_EQ(sliced[0], "embedding");
  EXPECT_EQ(sliced[1], "embedding");
  std::vector<std::string> twice = whole;
  twice.insert(twice.end(), whole.begin(), whole.end());
  std::sort(sliced.begin(), sliced.end());
  std::sort(twice.begin(), twice.end());
  EXPECT_EQ(sliced, twice);
}

}  // namespace
}  // namespace eyrie
