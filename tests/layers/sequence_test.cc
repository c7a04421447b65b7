// Ranks that hold successive chunks of the same sequences against one rank that holds them whole,
// in float64: every mixer of the registry, and a Griffin with recomputation, with documents that
// start anywhere; whole, or in several passes that hand a state on.
#include <gtest/gtest.h>

#include <memory>
#include <mutex>

#include "layers/chunked.h"
#include "tests/layers/layer_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr int64_t kBatch = 2;

struct Result {
  double loss = 0.0;
  OwnedTensor gradients;
  size_t peak_bytes = 0;
};

// The sequences of a training pass.
struct Sequences {
  Sequences(int64_t length, int64_t vocab, bool documents, TestRandom& random)
      : tokens(RandomTokens(kBatch, length, vocab, random)),
        labels(RandomTokens(kBatch, length, vocab, random)),
        positions(RandomPositions(kBatch, length, random, false)) {
    if (documents) return;
    for (int64_t i = 0; i < kBatch * length; ++i) {
      positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % length);
    }
  }
  int64_t length() const { return tokens.tensor.dim(1); }

  OwnedTensor tokens, labels, positions;
};

// What rank `rank` of `ranks` holds, when they run `chunk` tokens each at once.
OwnedTensor Part(const Tensor& whole, int rank, int ranks, int64_t chunk) {
  const int64_t length = whole.dim(1) / ranks;
  OwnedTensor part(whole.dtype, {whole.dim(0), length});
  for (int64_t t = 0; t < length; t += chunk) {
    const int64_t begin = t * ranks + rank * chunk;
    PasteTime(TimeSlice(whole, begin, begin + chunk).tensor, part.tensor, t);
  }
  return part;
}

// One training pass on `ranks` sequence ranks, `chunk` tokens at once: the loss and the gradients,
// summed over ranks.
Result Train(const config::ModelConfig& config, int ranks, int64_t chunk, Recompute recompute,
             const Sequences& data) {
  Result result;
  std::mutex mutex;
  RunRanks(ranks, [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh({.data = 1, .sequence = ranks, .tensor = 1}, std::move(world));
    const Model model(config, 1, recompute);
    ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/true);
    store.Initialise(5);
    Arena arena;
    eyrie::Run run{mesh, store, arena};
    const int rank = mesh.sequence().rank();
    const OwnedTensor tokens = Part(data.tokens.tensor, rank, ranks, chunk);
    const OwnedTensor labels = Part(data.labels.tensor, rank, ranks, chunk);
    const OwnedTensor positions = Part(data.positions.tensor, rank, ranks, chunk);
    run.positions = positions.tensor;
    const OwnedTensor sums(DType::kF64, {2});
    const Model::Batch batch{tokens.tensor, labels.tensor,
                             1.0 / static_cast<double>(kBatch * data.length()), sums.tensor};
    ForwardBackward(model, run, batch, chunk, /*completes_step=*/true);
    store.ReduceGrads();
    const Loss loss = ReadLoss(sums.tensor);
    const std::lock_guard lock(mutex);
    result.loss += loss.sum * batch.scale;
    result.gradients = Clone(store.flat_grads());
    result.peak_bytes = std::max(result.peak_bytes, arena.peak_bytes());
  });
  return result;
}

void ExpectEqual(const Result& many, const Result& one, int ranks, int64_t chunk) {
  EXPECT_NEAR(many.loss, one.loss, 1e-10 * one.loss) << ranks << " ranks, chunks of " << chunk;
  EXPECT_LT(RelativeError(many.gradients.tensor, one.gradients.tensor), 1e-10)
      << ranks << " ranks, chunks of " << chunk;
}

void ExpectAnyNumberOfRanksEqualsOne(const config::ModelConfig& config, Recompute recompute) {
  TestRandom random;
  for (const bool documents : {false, true}) {
    const Sequences data(24, config.vocab_size(), documents, random);
    const Result one = Train(config, 1, 24, Recompute::kNothing, data);
    for (const int ranks : {2, 3, 4, 8}) {
      ExpectEqual(Train(config, ranks, 24 / ranks, recompute, data), one, ranks, 24 / ranks);
    }
  }
}

void ExpectAnyChunksOnRanksEqualOne(const config::ModelConfig& config, Recompute recompute) {
  TestRandom random;
  for (const bool documents : {false, true}) {
    const Sequences data(36, config.vocab_size(), documents, random);
    const Result one = Train(config, 1, 36, Recompute::kNothing, data);
    for (const auto& [ranks, chunk] :
         {std::pair<int, int64_t>{2, 3}, {2, 6}, {2, 9}, {3, 3}, {3, 4}, {3, 6}, {4, 3}}) {
      ExpectEqual(Train(config, ranks, chunk, recompute, data), one, ranks, chunk);
    }
  }
}

class SequenceTest : public testing::TestWithParam<std::string> {};

// Two blocks, so that gradients cross the exchange of an earlier one; the window of local
// attention, 5, spans one rank or two, and reaches into the pass before.
TEST_P(SequenceTest, AnyNumberOfRanksEqualsOne) {
  ExpectAnyNumberOfRanksEqualsOne(SmallModel({GetParam()}, 2), Recompute::kNothing);
  ExpectAnyNumberOfRanksEqualsOne(SmallModel({GetParam()}, 2), Recompute::kSelective);
}

TEST_P(SequenceTest, AnyChunksOnRanksEqualOne) {
  ExpectAnyChunksOnRanksEqualOne(SmallModel({GetParam()}, 2), Recompute::kNothing);
}

// Wider than all that the ranks run at once.
TEST(SequenceWindowTest, SpansSeveralPasses) {
  for (const int64_t window : {7, 11, 25}) {
    config::ModelConfig config = SmallModel({"local_attention"}, 2);
    config.mutable_attention()->set_window(window);
    ExpectAnyChunksOnRanksEqualOne(config, Recompute::kNothing);
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, SequenceTest, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const MixerEntry& entry : MixerRegistry()) {
                             names.push_back(entry.name);
                           }
                           return names;
                         }()),
                         [](const auto& test) { return test.param; });

void ExpectRecomputationSendsNothingTwice(const config::ModelConfig& config) {
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kBlocks}) {
    ExpectAnyNumberOfRanksEqualsOne(config, recompute);
    ExpectAnyChunksOnRanksEqualOne(config, recompute);
  }
}
TEST(SequenceGriffinTest, RecomputationSendsNothingTwice) {
  ExpectRecomputationSendsNothingTwice(SmallGriffin());
}
TEST(SequenceMambaTest, RecomputationSendsNothingTwice) {
  ExpectRecomputationSendsNothingTwice(SmallModel({"mamba"}, 2));
}

TEST(SequenceMambaTest, TimeInvariantEqualsOneRankToo) {
  ExpectAnyNumberOfRanksEqualsOne(SmallTimeInvariant(2), Recompute::kSelective);
  ExpectAnyChunksOnRanksEqualOne(SmallTimeInvariant(2), Recompute::kBlocks);
}

// Of the whole sequences, what is predicted on ranks that run `chunk` tokens each at once, and the
// sum of the losses.
struct Evaluated {
  double loss = 0.0;
  OwnedTensor predicted;
};
Evaluated EvaluateOn(const config::ModelConfig& config, int ranks, int64_t chunk,
                     const Sequences& data) {
  Evaluated result{.loss = 0.0, .predicted = OwnedTensor(DType::kI32, data.tokens.tensor.shape)};
  std::mutex mutex;
  RunRanks(ranks, [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh({.data = 1, .sequence = ranks, .tensor = 1}, std::move(world));
    const Model model(config, 1);
    ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/false);
    store.Initialise(5);
    Arena arena;
    eyrie::Run run{mesh, store, arena};
    const int rank = mesh.sequence().rank();
    const OwnedTensor tokens = Part(data.tokens.tensor, rank, ranks, chunk);
    const OwnedTensor labels = Part(data.labels.tensor, rank, ranks, chunk);
    const OwnedTensor positions = Part(data.positions.tensor, rank, ranks, chunk);
    run.positions = positions.tensor;
    const OwnedTensor sums(DType::kF64, {2});
    const Tensor predicted =
        Evaluate(model, run, {tokens.tensor, labels.tensor, 1.0, sums.tensor}, chunk);
    EXPECT_EQ(run.positions.raw, positions.tensor.raw);
    const std::lock_guard lock(mutex);
    result.loss += ReadLoss(sums.tensor).sum;
    for (int64_t t = 0; t < tokens.tensor.dim(1); t += chunk) {
      PasteTime(TimeSlice(predicted, t, t + chunk).tensor, result.predicted.tensor,
                t * ranks + rank * chunk);
    }
  });
  return result;
}

TEST(SequenceEvaluationTest, AnyChunksOnRanksEqualOne) {
  TestRandom random;
  for (const auto& config : {SmallGriffin(), SmallModel({"mamba", "attention"}, 2)}) {
    const Sequences data(36, config.vocab_size(), /*documents=*/true, random);
    const Evaluated one = EvaluateOn(config, 1, 36, data);
    for (const auto& [ranks, chunk] :
         {std::pair<int, int64_t>{1, 4}, {1, 9}, {2, 18}, {2, 6}, {3, 4}, {3, 12}}) {
      const Evaluated many = EvaluateOn(config, ranks, chunk, data);
      EXPECT_NEAR(many.loss, one.loss, 1e-10 * one.loss) << ranks << " ranks, chunks of " << chunk;
      EXPECT_TRUE(BitwiseEqual(many.predicted.tensor, one.predicted.tensor));
    }
  }
}

TEST(SequenceXlstmTest, RecomputationSendsNothingTwice) {
  for (const auto& config : {SmallXlstm(), SmallModel({"mlstm_large+swiglu"}, 2)}) {
    ExpectAnyNumberOfRanksEqualsOne(config, Recompute::kBlocks);
    ExpectAnyChunksOnRanksEqualOne(config, Recompute::kBlocks);
  }
}

TEST(SequenceGriffinTest, MemoryFollowsTheChunkAndNotTheSequence) {
  TestRandom random;
  const config::ModelConfig config = SmallGriffin();
  const auto peak = [&](int64_t length, int64_t chunk) {
    const Sequences data(length, config.vocab_size(), /*documents=*/true, random);
    return Train(config, 2, chunk, Recompute::kNothing, data).peak_bytes;
  };
  const size_t small = peak(1024, 64);
  // Nothing but the state that enters each further chunk of both ranks together.
  EXPECT_EQ(peak(4096, 64), small + (4096 - 1024) / (2 * 64) * StateBytes(config, kBatch));
  EXPECT_LT(small, peak(1024, 128));
  EXPECT_LT(4 * small, peak(1024, 512));
}

}  // namespace
}  // namespace eyrie
