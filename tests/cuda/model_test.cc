// Whole models on the GPU against the CPU in float64: losses, gradients, optimiser steps.
#include "layers/model.h"

#include <map>
#include <set>

#include "core/tensor_math.h"
#include "launcher/optimizer.h"
#include "layers/chunked.h"
#include "tests/cuda/cuda_test_util.h"
#include "tests/layers/layer_test_util.h"

namespace eyrie {
namespace {

constexpr int64_t kBatch = 2, kTokens = 96;

config::ModelConfig MediumModel(const std::vector<std::string>& pattern, int64_t depth) {
  config::ModelConfig model = SmallModel(pattern, depth);
  model.set_vocab_size(203);
  model.set_width(64);
  model.mutable_recurrent()->set_width(96);
  model.mutable_recurrent()->set_gate_blocks(4);
  model.mutable_mamba()->set_width(128);
  model.mutable_mamba()->set_states(16);
  model.mutable_attention()->set_heads(3);
  model.mutable_attention()->set_head_width(64);
  model.mutable_attention()->set_window(17);
  model.mutable_lightning_attention()->set_heads(4);
  model.mutable_lightning_attention()->set_head_width(32);
  model.mutable_mlstm()->set_heads(4);
  model.mutable_mlstm()->set_width(128);
  model.mutable_mlstm()->set_key_width(64);
  model.mutable_slstm()->set_heads(2);
  model.mutable_mlp()->set_width(128);
  return model;
}

std::vector<config::ModelConfig> Models() {
  config::ModelConfig transnormer = MediumModel({"lightning_attention+sglu"}, 2);
  transnormer.set_norm(config::ModelConfig::SIMPLE_RMS_NORM);
  config::ModelConfig xlstm = MediumModel({"mlstm", "slstm+geglu_erf"}, 2);
  xlstm.set_norm(config::ModelConfig::LAYER_NORM);
  xlstm.set_tied_embedding(false);
  // A head whose output nearly vanishes, as at a document's start where q and k are at right
  // angles, has a gradient through its norm that no rounding leaves alone, in float64 either:
  // rounding the parameters to bfloat16 moves gradients of this model by 5 to 50 %. This epsilon
  // bounds it.
  config::ModelConfig large = MediumModel({"mlstm_large+swiglu"}, 2);
  large.set_norm_epsilon(1e-3);
  return {MediumModel({"recurrent+geglu", "recurrent+geglu", "local_attention+geglu"}, 3),
          MediumModel({"attention+geglu"}, 2),
          MediumModel({"mamba"}, 2),
          transnormer,
          xlstm,
          large};
}

struct Data {
  explicit Data(int64_t vocab, TestRandom& random)
      : tokens(RandomTokens(kBatch, kTokens, vocab, random)),
        labels(RandomTokens(kBatch, kTokens, vocab, random)),
        positions(RandomPositions(kBatch, kTokens, random, false)) {}
  OwnedTensor tokens, labels, positions;
};

// A model with all that a step needs, on one device.
class Place {
 public:
  Place(const config::ModelConfig& config, const config::OptimizerConfig& recipe,
        Precision precision, Device device, const Data& data,
        Recompute recompute = Recompute::kNothing, int64_t chunk = 0)
      : device_(device),
        chunk_(chunk),
        model_(config, 1, recompute),
        store_(model_.params(), mesh_, precision, /*with_gradients=*/true, {}, device),
        optimizer_(recipe, store_, mesh_),
        arena_(device),
        run_{mesh_, store_, arena_},
        tokens_(On(data.tokens)),
        labels_(On(data.labels)),
        positions_(On(data.positions)),
        loss_(DType::kF64, {2}, device) {
    store_.Initialise(3);
  }

  // Parameters, of a place in float64, become what mixed precision computes with.
  void RoundParameters() {
    for (ParamId id = 0; id < static_cast<ParamId>(store_.table().specs().size()); ++id) {
      if (store_.table().spec(id).full_precision) continue;
      Copy(Rounded(store_.value(id), DType::kBF16).tensor, store_.value(id));
    }
  }

  // The mean loss; gradients stay in the store.
  double ForwardBackward() {
    store_.ZeroGrads();
    FillZero(loss_.tensor);
    run_.positions = positions_.tensor;
    eyrie::ForwardBackward(model_, run_,
                           {tokens_.tensor, labels_.tensor, 1.0 / (kBatch * kTokens), loss_.tensor},
                           chunk_, /*completes_step=*/true);
    store_.ReduceGrads();
    return ReadLoss(loss_.tensor).sum / (kBatch * kTokens);
  }
  double Step(int64_t step) {
    const double loss = ForwardBackward();
    // At three times this rate the last steps amplify rounding a thousandfold: a float32 run on the
    // CPU leaves its float64 twin by up to 8e-3 in twenty steps, at this one by up to 1e-5.
    optimizer_.Step(step, 3e-3, optimizer_.GradNorm());
    store_.GatherDone();
    return loss;
  }
  OwnedTensor Gradient(ParamId id) const { return ToHost(store_.grad(id)); }
  const ParamStore& store() const { return store_; }
  size_t peak_bytes() const { return arena_.peak_bytes(); }

 private:
  OwnedTensor On(const OwnedTensor& host) const {
    OwnedTensor result(host.tensor.dtype, host.tensor.shape, device_);
    Copy(host.tensor, result.tensor);
    return result;
  }

  Device device_;
  int64_t chunk_;
  Mesh mesh_;
  Model model_;
  ParamStore store_;
  Optimizer optimizer_;
  Arena arena_;
  Run run_;
  OwnedTensor tokens_, labels_, positions_, loss_;
};

// The gradients by name, in float64. With `joined`, a bias counts as a further column of its
// weight: alone it is a few sums over all tokens, which may so nearly cancel that in float64
// rounding the parameters to bfloat16 already moves them by 5 %.
std::map<std::string, std::vector<double>> Gradients(const Place& place, bool joined) {
  const auto& specs = place.store().table().specs();
  std::set<std::string> names;
  for (const auto& spec : specs) names.insert(spec.name);
  std::map<std::string, std::vector<double>> result;
  for (size_t id = 0; id < specs.size(); ++id) {
    std::string name = specs[id].name;
    if (joined && name.ends_with(".b")) {
      // The mLSTM block's gates have one weight.
      for (const size_t end : {name.size() - 2, name.rfind("_i.b"), name.rfind("_f.b")}) {
        if (end == std::string::npos) continue;
        const std::string map = name.substr(0, end);
        for (const std::string& weight : {map + ".w", map + "s.w"}) {
          if (names.contains(weight)) name = weight;
        }
      }
    }
    const std::vector<double> gradient = Elements(place.Gradient(static_cast<ParamId>(id)).tensor);
    result[name].insert(result[name].end(), gradient.begin(), gradient.end());
  }
  return result;
}

TEST(CudaModel, GradientsAgreeWithTheCpu) {
  TestRandom random;
  const config::OptimizerConfig recipe;
  for (const auto& config : Models()) {
    const Data data(config.vocab_size(), random);
    for (const Precision& precision : {Precision(DType::kF32), Precision::Mixed()}) {
      const bool mixed = precision.has_masters();
      Place cpu(config, recipe, DType::kF64, Device::kCpu, data);
      if (mixed) cpu.RoundParameters();
      const double loss = cpu.ForwardBackward();
      const auto expected = Gradients(cpu, mixed);
      for (const Recompute recompute : kRecomputeModes) {
        for (const int64_t chunk : {0, 40}) {
          SCOPED_TRACE(StrCat(config.pattern(0), mixed ? " mixed" : " float32", " recompute ",
                              static_cast<int>(recompute), " chunk ", chunk));
          Place gpu(config, recipe, precision, Device::kCuda, data, recompute, chunk);
          EXPECT_NEAR(gpu.ForwardBackward(), loss, (mixed ? 1e-2 : 1e-5) * loss);
          for (const auto& [name, gradient] : Gradients(gpu, mixed)) {
            EXPECT_LT(RelativeError(gradient, expected.at(name), 1e-3), mixed ? 6e-2 : 1e-4)
                << name;
          }
        }
      }
    }
  }
}

TEST(CudaModel, TwentyStepsAgreeWithTheCpu) {
  TestRandom random;
  config::OptimizerConfig recipe;
  recipe.set_weight_decay(0.1);
  const auto config = Models().front();
  const Data data(config.vocab_size(), random);
  Place cpu(config, recipe, DType::kF32, Device::kCpu, data);
  Place gpu(config, recipe, DType::kF32, Device::kCuda, data);
  Place mixed(config, recipe, Precision::Mixed(), Device::kCuda, data);
  double first = 0, last = 0, last_mixed = 0;
  for (int step = 1; step <= 20; ++step) {
    last = cpu.Step(step);
    if (step == 1) first = last;
    EXPECT_NEAR(gpu.Step(step), last, 1e-4 * last) << step;
    last_mixed = mixed.Step(step);
  }
  EXPECT_LT(last, 0.9 * first);
  // Rounding takes its own way down; both have learnt the batch by heart.
  EXPECT_NEAR(last_mixed, last, 0.01 * first);
}

// Prefill in one piece, then a token at a time through recorded graphs, as a decoder does it,
// against the logits of the whole sequence in float64 on the CPU.
TEST(CudaModel, DecodingGivesTheLogitsOfTheWholeSequence) {
  constexpr int64_t kPrompt = 40;
  TestRandom random;
  const OwnedTensor positions(DType::kI32, {kBatch, kTokens});
  for (int64_t i = 0; i < kBatch * kTokens; ++i) {
    positions.tensor.data<int32_t>()[i] = static_cast<int32_t>(i % kTokens);
  }
  for (const auto& config : Models()) {
    const int64_t vocab = config.vocab_size();
    const OwnedTensor tokens = RandomTokens(kBatch, kTokens, vocab, random);
    const Mesh mesh;
    const Model model(config, 1);
    const auto parameters = [&](const Precision& precision, Device device) {
      ParamStore store(model.params(), mesh, precision, /*with_gradients=*/false, {}, device);
      store.Initialise(3);
      return store;
    };
    ParamStore cpu_store = parameters(DType::kF64, Device::kCpu);
    Arena cpu_arena;
    eyrie::Run cpu{mesh, cpu_store, cpu_arena};
    cpu.positions = positions.tensor;
    const OwnedTensor whole = PoisonedTensor(DType::kF64, {kBatch, kTokens, vocab});
    model.Logits(cpu, tokens.tensor, nullptr, nullptr, whole.tensor);

    for (const Precision& precision : {Precision(DType::kF32), Precision::Mixed()}) {
      SCOPED_TRACE(StrCat(config.pattern(0), " ", Name(precision.values)));
      ParamStore store = parameters(precision, Device::kCuda);
      Arena arena(Device::kCuda);
      eyrie::Run run{mesh, store, arena};
      ModelState states[2] = {model.MakeState(store, kBatch, kTokens),
                              model.MakeState(store, kBatch, kTokens)};
      Replay steps[2];
      const OwnedTensor token = ZeroCuda(DType::kI32, {kBatch, 1});
      const OwnedTensor position = ZeroCuda(DType::kI32, {kBatch, 1});
      const OwnedTensor step_logits = PoisonedCuda(DType::kF32, {kBatch, 1, vocab});
      const OwnedTensor stepped(DType::kF64, whole.tensor.shape);
      const OwnedTensor prompt = ToCuda(TimeSlice(tokens.tensor, 0, kPrompt).tensor);
      const OwnedTensor places = ToCuda(TimeSlice(positions.tensor, 0, kPrompt).tensor);
      const OwnedTensor prompt_logits = PoisonedCuda(DType::kF32, {kBatch, kPrompt, vocab});
      run.positions = places.tensor;
      model.Logits(run, prompt.tensor, nullptr, &states[0], prompt_logits.tensor);
      PasteTime(ToHost(prompt_logits.tensor).tensor, stepped.tensor, 0);
      run.positions = position.tensor;
      for (int64_t t = kPrompt, turn = 0; t < kTokens; ++t, turn = 1 - turn) {
        Copy(TimeSlice(tokens.tensor, t, t + 1).tensor, token.tensor);
        Copy(TimeSlice(positions.tensor, t, t + 1).tensor, position.tensor);
        steps[turn].Run(Device::kCuda, [&] {
          model.Logits(run, token.tensor, &states[turn], &states[1 - turn], step_logits.tensor);
        });
        PasteTime(ToHost(step_logits.tensor).tensor, stepped.tensor, t);
      }
      EXPECT_LT(RelativeError(stepped.tensor, whole.tensor), precision.has_masters() ? 5e-2 : 1e-4);
    }
  }
}

TEST(CudaModel, StepsRepeatBitByBit) {
  TestRandom random;
  const config::OptimizerConfig recipe;
  const auto config = Models().front();
  const Data data(config.vocab_size(), random);
  Place one(config, recipe, Precision::Mixed(), Device::kCuda, data);
  Place two(config, recipe, Precision::Mixed(), Device::kCuda, data);
  for (int step = 1; step <= 3; ++step) EXPECT_EQ(one.Step(step), two.Step(step));
  EXPECT_TRUE(
      BitwiseEqual(ToHost(one.store().masters()).tensor, ToHost(two.store().masters()).tensor));
}

}  // namespace
}  // namespace eyrie
