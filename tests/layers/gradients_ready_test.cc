// Backward says of each gradient when it is complete: not before, and by its end of all.
#include <gtest/gtest.h>

#include <memory>

#include "layers/model.h"
#include "tests/layers/layer_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

// The gradients of two ranks with sequences of their own, after two microbatches. With `armed` they
// are those right after the last backward pass: all buckets must have left, each complete, for
// this communicator's operations are over when they return.
OwnedTensor Gradients(const config::ModelConfig& config, Recompute recompute, bool armed) {
  OwnedTensor result;
  RunRanks(2, [&](std::unique_ptr<Communicator> world) {
    const Mesh mesh({2, 1, 1}, std::move(world));
    const Model model(config, 1, recompute);
    ParamStore store(model.params(), mesh, DType::kF64, true, {.bucket_elements = 48});
    store.Initialise(5);
    Arena arena;
    Run run{mesh, store, arena};
    const OwnedTensor loss(DType::kF64, {2});
    uint32_t state = static_cast<uint32_t>(mesh.data().rank()) + 1;
    for (int round = 0; round < 2; ++round) {
      const OwnedTensor tokens(DType::kI32, {2, 9}), positions(DType::kI32, {2, 9});
      for (int i = 0; i < 18; ++i) {
        state = state * 1664525u + 1013904223u;
        tokens.tensor.data<int32_t>()[i] = static_cast<int32_t>((state >> 8) % 23);
        positions.tensor.data<int32_t>()[i] = i % 9;
      }
      run.positions = positions.tensor;
      const Model::Batch batch{tokens.tensor, tokens.tensor, 1.0 / 72, loss.tensor};
      ArenaScope scope(arena);
      Model::Activations saved;
      model.Forward(run, batch, nullptr, nullptr, saved);
      if (armed && round == 1) store.ReduceAsReady();
      model.Backward(run, batch, saved, nullptr, nullptr, nullptr);
    }
    if (!armed) store.ReduceGrads();
    if (mesh.is_root()) result = Clone(store.flat_grads());
    if (armed) store.ReduceGrads();
  });
  return result;
}

TEST(GradientsReady, EveryBucketLeavesCompleteDuringBackward) {
  for (const config::ModelConfig& config : {SmallGriffin(), SmallTransNormer(), SmallXlstm()}) {
    for (const Recompute recompute : kRecomputeModes) {
      const OwnedTensor armed = Gradients(config, recompute, true);
      EXPECT_TRUE(BitwiseEqual(armed.tensor, Gradients(config, recompute, false).tensor));
    }
  }
}

}  // namespace
}  // namespace eyrie
