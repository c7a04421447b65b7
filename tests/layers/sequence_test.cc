// Ranks that hold successive chunks of the same sequences against one rank that holds them whole,
// in float64: every mixer of the registry, and a Griffin with recomputation, with documents that
// start anywhere.
#include <gtest/gtest.h>

#include <memory>
#include <mutex>

#include "tests/layers/layer_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr int64_t kBatch = 2, kTokens = 24;

struct Result {
  double loss = 0.0;
  OwnedTensor gradients;
};

// One training pass on `ranks` sequence ranks: the loss and the gradients, summed over ranks.
Result Train(const config::ModelConfig& config, int ranks, bool recompute, const Tensor& tokens,
             const Tensor& labels, const Tensor& positions) {
  Result result;
  std::mutex mutex;
  RunRanks(ranks, [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh({.data = 1, .sequence = ranks, .tensor = 1}, std::move(world));
    const Model model(config, 1, recompute);
    ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/true);
    store.Initialise(5);
    Arena arena;
    eyrie::Run run{mesh, store, arena};
    const int64_t share = kTokens / ranks, begin = mesh.sequence().rank() * share;
    const OwnedTensor mine[] = {TimeSlice(tokens, begin, begin + share),
                                TimeSlice(labels, begin, begin + share),
                                TimeSlice(positions, begin, begin + share)};
    run.positions = mine[2].tensor;
    const Model::Batch batch{mine[0].tensor, mine[1].tensor, 1.0 / (kBatch * kTokens)};
    Model::Activations saved;
    const Loss loss = model.Forward(run, batch, nullptr, nullptr, saved);
    model.Backward(run, batch, saved, nullptr, nullptr, nullptr);
    store.ReduceGrads();
    const std::lock_guard lock(mutex);
    result.loss += loss.sum * batch.scale;
    result.gradients = Clone(store.flat_grads());
  });
  return result;
}

void ExpectAnyNumberOfRanksEqualsOne(const config::ModelConfig& config, bool recompute) {
  TestRandom random;
  const OwnedTensor tokens = RandomTokens(kBatch, kTokens, config.vocab_size(), random);
  const OwnedTensor labels = RandomTokens(kBatch, kTokens, config.vocab_size(), random);
  OwnedTensor one_document(DType::kI32, {kBatch, kTokens});
  for (int64_t i = 0; i < kBatch * kTokens; ++i) {
    one_document.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % kTokens);
  }
  const OwnedTensor documents = RandomPositions(kBatch, kTokens, random, false);
  for (const Tensor& positions : {one_document.tensor, documents.tensor}) {
    const Result one = Train(config, 1, false, tokens.tensor, labels.tensor, positions);
    for (const int ranks : {2, 3, 4, 8}) {
      const Result many = Train(config, ranks, recompute, tokens.tensor, labels.tensor, positions);
      EXPECT_NEAR(many.loss, one.loss, 1e-10 * one.loss) << ranks << " ranks";
      EXPECT_LT(RelativeError(many.gradients.tensor, one.gradients.tensor), 1e-10)
          << ranks << " ranks";
    }
  }
}

class SequenceTest : public testing::TestWithParam<std::string> {};

TEST_P(SequenceTest, AnyNumberOfRanksEqualsOne) {
  // Two blocks, so that gradients cross the exchange of an earlier one; the window of local
  // attention, 5, spans one rank or two.
  ExpectAnyNumberOfRanksEqualsOne(SmallModel({GetParam()}, 2), /*recompute=*/false);
}

INSTANTIATE_TEST_SUITE_P(Registry, SequenceTest, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const MixerEntry& entry : MixerRegistry()) {
                             names.push_back(entry.name);
                           }
                           return names;
                         }()),
                         [](const auto& test) { return test.param; });

TEST(SequenceGriffinTest, RecomputationSendsNothingTwice) {
  ExpectAnyNumberOfRanksEqualsOne(SmallGriffin(), /*recompute=*/true);
}

}  // namespace
}  // namespace eyrie
