// Whole models in float64: gradients, chunks, recomputation, decoding.
#include <gtest/gtest.h>

#include <limits>
#include <memory>

#include "core/tensor_math.h"
#include "kernels/elementwise/elementwise.h"
#include "tests/layers/layer_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr int64_t kBatch = 2, kTokens = 17, kCapacity = 32;

struct Fixture {
  Fixture(const config::ModelConfig& config, Recompute recompute, TestRandom& random)
      : model(config, 1, recompute),
        store(RandomStore(model.params(), mesh, random)),
        run{mesh, store, arena} {}

  // The loss of the whole batch, with gradients.
  double Train(const Model::Batch& batch, const Tensor& positions) {
    store.ZeroGrads();
    return Backpropagate(batch, positions);
  }
  // Adds to the gradients.
  double Backpropagate(const Model::Batch& batch, const Tensor& positions) {
    ArenaScope scope(arena);
    run.positions = positions;
    Model::Activations saved;
    FillZero(batch.loss);
    model.Forward(run, batch, nullptr, nullptr, saved);
    model.Backward(run, batch, saved, nullptr, nullptr, nullptr);
    return ReadLoss(batch.loss).sum * batch.scale;
  }

  Mesh mesh;
  Model model;
  ParamStore store;
  Arena arena;
  Run run;
};

struct Data {
  Data(int64_t vocab, TestRandom& random)
      : tokens(RandomTokens(kBatch, kTokens, vocab, random)),
        labels(RandomTokens(kBatch, kTokens, vocab, random)),
        positions(RandomPositions(kBatch, kTokens, random, false)) {
    labels.tensor.data<int32_t>()[3] = -1;  // does not count
  }
  Model::Batch batch() const {
    return {tokens.tensor, labels.tensor, 1.0 / (kBatch * kTokens - 1), loss.tensor};
  }
  OwnedTensor tokens, labels, positions;
  OwnedTensor loss{DType::kF64, {2}};
};

config::ModelConfig CappedGriffin() {
  config::ModelConfig config = SmallGriffin();
  config.set_logit_soft_cap(3.0);
  config.set_embedding_scale(config::ModelConfig::SQRT_WIDTH);
  return config;
}

TEST(ModelTest, GradientsMatchFiniteDifferences) {
  TestRandom random;
  for (const auto& config : {SmallGriffin(), CappedGriffin(), SmallTransNormer(), SmallXlstm()}) {
    Fixture f(config, Recompute::kNothing, random);
    const Data data(config.vocab_size(), random);
    f.Train(data.batch(), data.positions.tensor);
    const OwnedTensor gradients = Clone(f.store.flat_grads());
    const auto loss = [&] {
      f.run.positions = data.positions.tensor;
      FillZero(data.loss.tensor);
      f.model.Evaluate(f.run, data.batch());
      const Loss result = ReadLoss(data.loss.tensor);
      EXPECT_EQ(result.valid, kBatch * kTokens - 1);
      return result.sum * data.batch().scale;
    };
    for (ParamId id = 0; id < static_cast<ParamId>(f.model.params().specs().size()); ++id) {
      const Tensor gradient = f.store.At(gradients.buffer, id);
      EXPECT_LT(NumericGradientCheck(loss, f.store.value(id), gradient, random, 3e-4, 12), 1e-6)
          << f.model.params().spec(id).name;
    }
  }
}

// The first contribution of a step to a gradient may overwrite what is there; all others add.
TEST(ModelTest, GradientsAreThoseAddedToZeros) {
  TestRandom random;
  config::ModelConfig untied = SmallGriffin();
  untied.set_tied_embedding(false);
  for (const auto& config : {SmallGriffin(), untied, SmallModel({"mamba"}, 3), SmallXlstm()}) {
    Fixture f(config, Recompute::kNothing, random);
    const Data data(config.vocab_size(), random);
    for (ParamId id = 0; id < static_cast<ParamId>(f.model.params().specs().size()); ++id) {
      Fill(f.store.grad(id), std::numeric_limits<double>::quiet_NaN());
    }
    f.Train(data.batch(), data.positions.tensor);
    const OwnedTensor written = Clone(f.store.flat_grads());
    FillZero(f.store.flat_grads());
    f.Backpropagate(data.batch(), data.positions.tensor);
    EXPECT_LT(RelativeError(written.tensor, f.store.flat_grads()), 1e-15);
    f.Backpropagate(data.batch(), data.positions.tensor);
    Add(written.tensor, written.tensor, written.tensor);
    EXPECT_LT(RelativeError(written.tensor, f.store.flat_grads()), 1e-13);
  }
}

TEST(ModelTest, TrainingAndEvaluationGiveTheSameLoss) {
  TestRandom random;
  Fixture f(SmallGriffin(), Recompute::kNothing, random);
  const Data data(23, random);
  const double trained = f.Train(data.batch(), data.positions.tensor);
  f.run.positions = data.positions.tensor;
  FillZero(data.loss.tensor);
  f.model.Evaluate(f.run, data.batch());
  EXPECT_EQ(trained, ReadLoss(data.loss.tensor).sum * data.batch().scale);
}

// On any number of tensor ranks.
TEST(ModelTest, PredictionsAreTheLargestLogits) {
  TestRandom random;
  config::ModelConfig config = SmallModel({"attention"}, 1);
  config.set_vocab_size(24);
  config.mutable_attention()->set_heads(4);
  const Data data(config.vocab_size(), random);
  for (const int ranks : {1, 2, 4}) {
    RunRanks(ranks, [&](std::unique_ptr<Communicator> world) {
      const Mesh mesh({.data = 1, .sequence = 1, .tensor = ranks}, std::move(world));
      const Model model(config, ranks);
      ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/false);
      store.Initialise(7);
      Arena arena;
      eyrie::Run run{mesh, store, arena};
      run.positions = data.positions.tensor;
      const OwnedTensor predicted(DType::kI32, {kBatch, kTokens}), sums(DType::kF64, {2});
      const OwnedTensor logits(DType::kF64, {kBatch, kTokens, config.vocab_size()});
      Model::Batch batch = data.batch();
      batch.loss = sums.tensor;
      model.Evaluate(run, batch, nullptr, nullptr, predicted.tensor);
      model.Logits(run, data.tokens.tensor, nullptr, nullptr, logits.tensor);
      for (int64_t n = 0; n < kBatch * kTokens; ++n) {
        const double* row = logits.tensor.data<double>() + n * config.vocab_size();
        EXPECT_EQ(predicted.tensor.data<int32_t>()[n],
                  std::max_element(row, row + config.vocab_size()) - row);
      }
    });
  }
}

TEST(ModelTest, RecomputationGivesTheSameGradients) {
  TestRandom random;
  const Data data(23, random);
  for (const auto& config : {SmallGriffin(), SmallTransNormer(), SmallModel({"mamba"}, 3)}) {
    Fixture kept(config, Recompute::kNothing, random);
    Fixture selective(config, Recompute::kSelective, random);
    Fixture blocks(config, Recompute::kBlocks, random);
    const double loss = kept.Train(data.batch(), data.positions.tensor);
    for (Fixture* recomputed : {&selective, &blocks}) {
      Copy(kept.store.flat_values(), recomputed->store.flat_values());
      EXPECT_EQ(recomputed->Train(data.batch(), data.positions.tensor), loss);
      EXPECT_TRUE(BitwiseEqual(kept.store.flat_grads(), recomputed->store.flat_grads()));
    }
    EXPECT_LT(selective.arena.peak_bytes(), kept.arena.peak_bytes());
    EXPECT_LT(blocks.arena.peak_bytes(), selective.arena.peak_bytes());
  }
}

// Chunk by chunk, forward left to right and backward right to left, with recomputation or without.
TEST(ModelTest, AnySplitIntoChunksEqualsTheWhole) {
  for (const Recompute recompute : kRecomputeModes) {
    TestRandom random;
    Fixture f(SmallGriffin(), recompute, random);
    const Data data(23, random);
    const double whole_loss = f.Train(data.batch(), data.positions.tensor);
    const OwnedTensor whole_grads = Clone(f.store.flat_grads());

    const std::vector<int64_t> cuts = RandomCuts(kTokens, random);
    const size_t chunks = cuts.size() - 1;
    std::vector<ModelState> states, gradients;
    for (size_t i = 0; i <= chunks; ++i) {
      states.push_back(f.model.MakeState(f.store, kBatch, kCapacity));
      gradients.push_back(f.model.MakeState(f.store, kBatch, kCapacity));
    }
    ArenaScope scope(f.arena);
    f.store.ZeroGrads();
    std::vector<OwnedTensor> tokens, labels, positions;
    std::vector<Model::Activations> saved(chunks);
    const OwnedTensor loss(DType::kF64, {2});
    const auto batch = [&](size_t i) {
      return Model::Batch{tokens[i].tensor, labels[i].tensor, data.batch().scale, loss.tensor};
    };
    for (size_t i = 0; i < chunks; ++i) {
      tokens.push_back(TimeSlice(data.tokens.tensor, cuts[i], cuts[i + 1]));
      labels.push_back(TimeSlice(data.labels.tensor, cuts[i], cuts[i + 1]));
      positions.push_back(TimeSlice(data.positions.tensor, cuts[i], cuts[i + 1]));
      f.run.positions = positions[i].tensor;
      f.model.Forward(f.run, batch(i), &states[i], &states[i + 1], saved[i]);
    }
    for (size_t i = chunks; i-- > 0;) {
      f.run.positions = positions[i].tensor;
      f.model.Backward(f.run, batch(i), saved[i], &states[i],
                       i + 1 == chunks ? nullptr : &gradients[i + 1], &gradients[i]);
    }
    EXPECT_NEAR(ReadLoss(loss.tensor).sum * data.batch().scale, whole_loss, 1e-10 * whole_loss);
    EXPECT_LT(RelativeError(f.store.flat_grads(), whole_grads.tensor), 1e-10);
  }
}

// Prefill in chunks, then one token at a time, against the training forward's own logits.
TEST(ModelTest, DecodingGivesTheLogitsOfTheWholeSequence) {
  TestRandom random;
  for (const auto& config :
       {SmallGriffin(), CappedGriffin(), SmallModel({"attention+geglu"}, 2), SmallTransNormer(),
        SmallXlstm(), SmallModel({"mlstm_large+swiglu"}, 2)}) {
    Fixture f(config, Recompute::kNothing, random);
    const OwnedTensor tokens = RandomTokens(kBatch, kTokens, config.vocab_size(), random);
    OwnedTensor positions(DType::kI32, {kBatch, kTokens});
    for (int64_t i = 0; i < kBatch * kTokens; ++i) {
      positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % kTokens);
    }
    OwnedTensor whole = PoisonedTensor(DType::kF64, {kBatch, kTokens, config.vocab_size()});
    f.run.positions = positions.tensor;
    f.model.Logits(f.run, tokens.tensor, nullptr, nullptr, whole.tensor);

    ModelState state = f.model.MakeState(f.store, kBatch, kTokens);
    ModelState next = f.model.MakeState(f.store, kBatch, kTokens);
    OwnedTensor stepped(DType::kF64, whole.tensor.shape);
    for (int64_t begin = 0; begin < kTokens;) {
      const int64_t end = begin < 8 ? begin + 4 : begin + 1;
      const OwnedTensor part = TimeSlice(tokens.tensor, begin, end);
      const OwnedTensor part_positions = TimeSlice(positions.tensor, begin, end);
      OwnedTensor logits = PoisonedTensor(DType::kF64, {kBatch, end - begin, config.vocab_size()});
      f.run.positions = part_positions.tensor;
      f.model.Logits(f.run, part.tensor, &state, &next, logits.tensor);
      std::swap(state, next);
      PasteTime(logits.tensor, stepped.tensor, begin);
      begin = end;
    }
    EXPECT_LT(RelativeError(stepped.tensor, whole.tensor), 1e-10);
  }
}

}  // namespace
}  // namespace eyrie
