// Chunked execution on one device: the same loss, gradients and predictions, with memory that
// follows the chunk.
#include "layers/chunked.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/layers/layer_test_util.h"

namespace eyrie {
namespace {

struct Outcome {
  double loss;
  OwnedTensor gradients;
  size_t peak_bytes;
};

Outcome Train(const config::ModelConfig& config, int64_t tokens, int64_t chunk_length,
              Recompute recompute, uint64_t seed) {
  const Mesh mesh;
  const Model model(config, 1, recompute);
  ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/true);
  store.Initialise(seed);
  OwnedTensor ids(DType::kI32, {1, tokens + 1}), positions(DType::kI32, {1, tokens});
  const Random random(seed, "tokens");
  int32_t position = 0;
  for (int64_t i = 0; i <= tokens; ++i) {
    const auto bits = random.Bits(static_cast<uint64_t>(i));
    ids.tensor.data<int32_t>()[i] =
        static_cast<int32_t>(bits[0] % static_cast<uint32_t>(config.vocab_size()));
    if (i == tokens) break;
    positions.tensor.data<int32_t>()[i] = position;
    position = bits[1] % 97 == 0 ? 0 : position + 1;
  }
  const OwnedTensor labels = TimeSlice(ids.tensor, 1, tokens + 1);
  const OwnedTensor inputs = TimeSlice(ids.tensor, 0, tokens);
  Arena arena;
  eyrie::Run run{mesh, store, arena};
  run.positions = positions.tensor;
  const OwnedTensor sums(DType::kF64, {2});
  ForwardBackward(model, run,
                  {inputs.tensor, labels.tensor, 1.0 / static_cast<double>(tokens), sums.tensor},
                  chunk_length, /*completes_step=*/true);
  store.ReduceGrads();
  const Loss loss = ReadLoss(sums.tensor);
  EXPECT_EQ(loss.valid, tokens);
  return {loss.sum / static_cast<double>(tokens), Clone(store.flat_grads()), arena.peak_bytes()};
}

TEST(ChunkedTest, EqualsTheWhole) {
  TestRandom random;
  for (const auto& config : {SmallGriffin(), SmallModel({"attention+geglu"}, 1)}) {
    const Outcome whole = Train(config, 1100, 0, Recompute::kNothing, random.seed());
    for (const auto& [chunk, recompute] : {std::pair<int64_t, Recompute>{64, Recompute::kNothing},
                                           {100, Recompute::kBlocks},
                                           {100, Recompute::kSelective},
                                           {1000, Recompute::kNothing},
                                           {1100, Recompute::kNothing}}) {
      const Outcome chunked = Train(config, 1100, chunk, recompute, random.seed());
      EXPECT_NEAR(chunked.loss, whole.loss, 1e-10 * whole.loss) << chunk;
      EXPECT_LT(RelativeError(chunked.gradients.tensor, whole.gradients.tensor), 1e-10) << chunk;
    }
  }
}

TEST(ChunkedTest, MemoryFollowsTheChunkAndNotTheSequence) {
  TestRandom random;
  const config::ModelConfig config = SmallGriffin();
  std::map<int64_t, size_t> peaks;
  for (const int64_t chunk : {64, 256}) {
    const size_t short_peak =
        Train(config, 1024, chunk, Recompute::kNothing, random.seed()).peak_bytes;
    const size_t long_peak =
        Train(config, 4096, chunk, Recompute::kNothing, random.seed()).peak_bytes;
    // Nothing but the state that enters each further chunk.
    const size_t more = static_cast<size_t>((4096 - 1024) / chunk);
    EXPECT_EQ(long_peak, short_peak + more * StateBytes(config, 1)) << chunk;
    EXPECT_LT(20 * StateBytes(config, 1), short_peak);
    peaks[chunk] = short_peak;
  }
  EXPECT_LT(peaks[64], peaks[256]);
  EXPECT_LT(4 * peaks[256], Train(config, 4096, 0, Recompute::kNothing, random.seed()).peak_bytes);
}

TEST(ChunkedTest, EvaluationEqualsTheWholeInTheMemoryOfAChunk) {
  TestRandom random;
  const config::ModelConfig config = SmallGriffin();
  const Mesh mesh;
  const Model model(config, 1);
  const ParamStore with_noise = RandomStore(model.params(), mesh, random);
  ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/false);
  Copy(with_noise.flat_values(), store.flat_values());
  const OwnedTensor tokens = RandomTokens(2, 1100, config.vocab_size(), random);
  const OwnedTensor labels = RandomTokens(2, 1100, config.vocab_size(), random);
  const OwnedTensor positions = RandomPositions(2, 1100, random, false);
  const auto evaluate = [&](int64_t chunk, double& loss, size_t& peak_bytes) {
    Arena arena;
    eyrie::Run run{mesh, store, arena};
    run.positions = positions.tensor;
    const OwnedTensor sums(DType::kF64, {2});
    const Tensor predicted =
        Evaluate(model, run, {tokens.tensor, labels.tensor, 1.0, sums.tensor}, chunk);
    loss = ReadLoss(sums.tensor).sum;
    EXPECT_EQ(ReadLoss(sums.tensor).valid, 2 * 1100);
    peak_bytes = arena.peak_bytes();
    return Clone(predicted);
  };
  double whole_loss = 0, loss = 0;
  size_t whole_peak = 0, peak = 0;
  const OwnedTensor whole = evaluate(0, whole_loss, whole_peak);
  for (const int64_t chunk : {1, 7, 64, 1000, 1099, 1100, 5000}) {
    const OwnedTensor chunked = evaluate(chunk, loss, peak);
    EXPECT_NEAR(loss, whole_loss, 1e-10 * whole_loss) << chunk;
    EXPECT_TRUE(BitwiseEqual(chunked.tensor, whole.tensor)) << chunk;
    if (chunk <= 64) {
      EXPECT_LT(4 * peak, whole_peak) << chunk;
    }
  }
}

}  // namespace
}  // namespace eyrie
