// Small models in float64 on one rank, for the tests of the layers.
#pragma once

#include <string>
#include <vector>

#include "layers/model.h"
#include "layers/registry.h"
#include "tests/kernels/kernel_test_util.h"

namespace eyrie {

inline constexpr Recompute kRecomputeModes[] = {Recompute::kNothing, Recompute::kSelective,
                                                Recompute::kBlocks};

// Every component small, odd where nothing forbids it.
inline config::ModelConfig SmallModel(const std::vector<std::string>& pattern, int64_t depth) {
  config::ModelConfig model;
  model.set_vocab_size(23);
  model.set_width(12);
  model.set_depth(depth);
  for (const std::string& entry : pattern) model.add_pattern(entry);
  model.mutable_recurrent()->set_width(18);
  model.mutable_recurrent()->set_gate_blocks(3);
  model.mutable_mamba()->set_width(18);
  model.mutable_mamba()->set_states(5);
  model.mutable_mamba()->set_dt_rank(3);
  model.mutable_attention()->set_heads(3);
  model.mutable_attention()->set_head_width(8);
  model.mutable_attention()->set_window(5);
  model.mutable_lightning_attention()->set_heads(3);
  model.mutable_lightning_attention()->set_head_width(5);
  model.mutable_mlstm()->set_heads(3);
  model.mutable_mlstm()->set_width(24);
  model.mutable_mlstm()->set_key_width(15);
  model.mutable_mlstm()->set_gate_soft_cap(4);
  // Gradients neglect that the stabiliser changes what epsilon is worth.
  model.mutable_mlstm()->set_epsilon(1e-10);
  model.mutable_slstm()->set_heads(3);
  model.mutable_mlp()->set_width(20);
  return model;
}

inline config::ModelConfig SmallGriffin() {
  return SmallModel({"recurrent+geglu", "recurrent+geglu", "local_attention+geglu"}, 3);
}

// A Mamba's block whose step sizes, B and C are constants.
inline config::ModelConfig SmallTimeInvariant(int64_t depth) {
  config::ModelConfig model = SmallModel({"mamba"}, depth);
  model.mutable_mamba()->clear_dt_rank();
  model.mutable_mamba()->set_input_dependent(false);
  return model;
}

// No norm has a weight.
inline config::ModelConfig SmallTransNormer() {
  config::ModelConfig model = SmallModel({"lightning_attention+sglu"}, 2);
  model.set_norm(config::ModelConfig::SIMPLE_RMS_NORM);
  model.set_embedding_scale(config::ModelConfig::EXACT_SQRT_WIDTH);
  return model;
}

// Both of the paper's blocks, LayerNorms and a head of its own.
inline config::ModelConfig SmallXlstm() {
  config::ModelConfig model = SmallModel({"mlstm", "slstm+geglu_erf"}, 3);
  model.set_norm(config::ModelConfig::LAYER_NORM);
  model.set_norm_epsilon(1e-5);
  model.set_tied_embedding(false);
  model.set_embedding_variance(0.4);
  return model;
}

// A float64 store with every parameter random, so that none hides behind a zero start.
inline ParamStore RandomStore(const ParamTable& table, const Mesh& mesh, TestRandom& random) {
  ParamStore store(table, mesh, DType::kF64, /*with_gradients=*/true);
  store.Initialise(random.seed());
  for (ParamId id = 0; id < static_cast<ParamId>(table.specs().size()); ++id) {
    const Tensor value = store.value(id);
    for (int64_t i = 0; i < value.size(); ++i) value.data<double>()[i] += 0.1 * random.Normal();
  }
  return store;
}

// Of the state that a chunk of `batch` sequences hands to the next one, in float64.
inline size_t StateBytes(const config::ModelConfig& config, int64_t batch) {
  const Mesh mesh;
  const Model model(config, 1);
  const ParamStore store(model.params(), mesh, DType::kF64, /*with_gradients=*/false);
  Arena arena;
  model.MakeState(store, batch, /*capacity=*/4096, &arena);
  return arena.peak_bytes();
}

inline OwnedTensor RandomTokens(int64_t batch, int64_t tokens, int64_t vocab, TestRandom& random) {
  OwnedTensor result(DType::kI32, {batch, tokens});
  for (int64_t i = 0; i < result.tensor.size(); ++i) {
    result.tensor.data<int32_t>()[i] = static_cast<int32_t>(random.Int(0, vocab - 1));
  }
  return result;
}

inline void Randomise(State& state, TestRandom& random) {
  for (size_t slot = 0; slot < state.size(); ++slot) {
    const Tensor& tensor = state[static_cast<SlotId>(slot)];
    for (int64_t i = 0; i < tensor.size(); ++i) tensor.data<double>()[i] = random.Normal();
  }
}

// Cuts [0, tokens) at random into pieces, of a single token too.
inline std::vector<int64_t> RandomCuts(int64_t tokens, TestRandom& random) {
  std::vector<int64_t> cuts = {0};
  while (cuts.back() < tokens) {
    const int64_t piece = random.Int(0, 2) == 0 ? random.Int(1, 2) : random.Int(1, tokens);
    cuts.push_back(std::min(tokens, cuts.back() + piece));
  }
  return cuts;
}

}  // namespace eyrie
