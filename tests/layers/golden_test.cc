// Models against implementations that share nothing with this one: tests/golden/*.py wrote their
// parameters and logits.
#include <gtest/gtest.h>

#include <filesystem>

#include "core/safetensors.h"
#include "layers/model.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {
namespace {

TEST(GoldenTest, TransNormerGivesTheLogitsOfItsEquations) {
  config::ModelConfig config;
  config.set_vocab_size(50);
  config.set_width(24);
  config.set_depth(3);
  config.add_pattern("lightning_attention+sglu");
  config.set_norm(config::ModelConfig::SIMPLE_RMS_NORM);
  config.set_embedding_scale(config::ModelConfig::EXACT_SQRT_WIDTH);
  config.mutable_lightning_attention()->set_heads(3);
  config.mutable_lightning_attention()->set_head_width(8);
  config.mutable_mlp()->set_width(40);

  const SafetensorsFile file(std::filesystem::path(EYRIE_SOURCE_DIR) /
                             "tests/golden/transnormer/small.safetensors");
  const int64_t length = file.Find("tokens")->shape[0];
  const OwnedTensor tokens(DType::kI32, {1, length}), expected(DType::kF32, {length, 50});
  const OwnedTensor row(DType::kI32, {length});
  file.Read("tokens", row.tensor);
  Copy(row.tensor, tokens.tensor);
  file.Read("logits", expected.tensor);

  const Mesh mesh;
  const Model model(config, 1);
  ParamStore store(model.params(), mesh, DType::kF32, /*with_gradients=*/false);
  for (ParamId id = 0; id < static_cast<ParamId>(model.params().specs().size()); ++id) {
    file.Read(model.params().spec(id).name, store.value(id));
  }
  EXPECT_EQ(file.entries().size(), model.params().specs().size() + 2);

  Arena arena;
  eyrie::Run run{mesh, store, arena};
  const OwnedTensor positions(DType::kI32, {1, length});
  for (int64_t t = 0; t < length; ++t) Set(positions.tensor, t, static_cast<double>(t));
  run.positions = positions.tensor;
  const OwnedTensor logits = PoisonedTensor(DType::kF32, {1, length, 50});
  model.Logits(run, tokens.tensor, nullptr, nullptr, logits.tensor);
  EXPECT_LT(RelativeError(logits.tensor.View({length, 50}), expected.tensor), 1e-5);
  for (int64_t i = 0; i < expected.tensor.size(); ++i) {
    ASSERT_NEAR(Get(logits.tensor, i), Get(expected.tensor, i), 1e-4) << "logit " << i;
  }

  // And token by token, through the state.
  ModelState before = model.MakeState(store, 1, length), after = model.MakeState(store, 1, length);
  const OwnedTensor one = PoisonedTensor(DType::kF32, {1, 1, 50});
  for (int64_t t = 0; t < length; ++t) {
    const OwnedTensor token = TimeSlice(tokens.tensor, t, t + 1);
    const OwnedTensor position = TimeSlice(positions.tensor, t, t + 1);
    run.positions = position.tensor;
    model.Logits(run, token.tensor, &before, &after, one.tensor);
    std::swap(before, after);
    for (int64_t i = 0; i < 50; ++i) {
      ASSERT_NEAR(Get(one.tensor, i), Get(expected.tensor, t * 50 + i), 1e-4) << "token " << t;
    }
  }
}

}  // namespace
}  // namespace eyrie
