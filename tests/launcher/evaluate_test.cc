// Accuracy on a model whose predictions are known, on every layout.
#include "launcher/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "launcher/agree.h"
#include "tests/launcher/temp_folder.h"
#include "tests/layers/layer_test_util.h"
#include "tests/support/fake_communicator.h"

namespace eyrie {
namespace {

constexpr int64_t kVocab = 8, kLength = 12, kSequences = 7;

// Mixers that give nothing and the identity as embedding: each token predicts itself.
config::ModelConfig Echo() {
  config::ModelConfig config = SmallModel({"recurrent+geglu", "attention"}, 2);
  config.set_vocab_size(kVocab);
  config.set_width(kVocab);
  config.mutable_recurrent()->set_width(8);
  config.mutable_recurrent()->set_gate_blocks(2);
  config.mutable_attention()->set_heads(2);
  return config;
}
void MakeEcho(ParamStore& store, int tensor_rank) {
  FillZero(store.flat_values());
  const Tensor table = store.value(0);
  ASSERT_EQ(store.table().spec(0).name, "tok.w");
  for (int64_t row = 0; row < table.dim(0); ++row) {
    table.data<float>()[row * kVocab + tensor_rank * table.dim(0) + row] = 1.0f;
  }
}

class EvaluateTest : public TempFolderTest {
 protected:
  // `asked` of a token: nothing, itself or another.
  enum Asked { kNothing, kItself, kAnother };
  void Write(const std::vector<Asked>& asked) {
    IndexedDatasetWriter tokens(prefix_, kVocab), labels(prefix_ + ".labels", kVocab + 1);
    std::vector<int32_t> token, label;
    for (size_t i = 0; i < asked.size(); ++i) {
      token.push_back(static_cast<int32_t>(i * 5 % kVocab));
      label.push_back(asked[i] == kNothing  ? 0
                      : asked[i] == kItself ? token.back() + 1
                                            : (token.back() + 3) % int32_t{kVocab} + 1);
    }
    tokens.AddDocument(token);
    labels.AddDocument(label);
    tokens.Finish();
    labels.Finish();
  }

  Evaluation Run(const MeshShape& shape, int64_t micro_batch, int64_t chunk_length) {
    Evaluation result;
    std::mutex mutex;
    RunRanks(shape.ranks(), [&](std::unique_ptr<Communicator> world) {
      const Mesh mesh(shape, std::move(world));
      const Model model(Echo(), shape.tensor);
      ParamStore store(model.params(), mesh, DType::kF32, /*with_gradients=*/false);
      MakeEcho(store, mesh.tensor().rank());
      Arena arena;
      eyrie::Run run{mesh, store, arena};
      BatchReader reader({.prefix = prefix_,
                          .max_batch = micro_batch,
                          .length = kLength,
                          .vocab_size = kVocab,
                          .chunk = mesh.sequence().rank(),
                          .chunks = mesh.sequence().size(),
                          .stripe = chunk_length,
                          .labels = config::DataConfig::GIVEN});
      try {
        const Evaluation own = Evaluate(run, model, reader, kSequences, micro_batch, chunk_length);
        const std::lock_guard lock(mutex);
        result = own;
      } catch (const AgreedError& error) {
        EXPECT_EQ(error.code(), ExitCode::kBadInput);
        const std::lock_guard lock(mutex);
        message_ += error.what();
      }
    });
    return result;
  }

  const std::string prefix_ = Path("data");
  std::string message_;
};

TEST_F(EvaluateTest, CountsLabelsAndWholeSequencesOnEveryLayout) {
  std::vector<Asked> asked(kSequences * kLength, kNothing);
  const auto ask = [&](int64_t sequence, int64_t token, Asked what) {
    asked[static_cast<size_t>(sequence * kLength + token)] = what;
  };
  // Sequence 0 asks for nothing; 1, 2 and 3 are right; 4 is wrong in one of three, at its end; 5 is
  // wrong, 6 right in its last half.
  ask(1, 11, kItself);
  for (const int64_t t : {0, 5, 7}) ask(2, t, kItself);
  for (int64_t t = 0; t < kLength; ++t) ask(3, t, kItself);
  ask(4, 1, kItself);
  ask(4, 2, kItself);
  ask(4, 11, kAnother);
  ask(5, 3, kAnother);
  ask(6, 2, kAnother);
  ask(6, 9, kItself);
  Write(asked);
  for (const MeshShape& shape : {MeshShape{1, 1, 1}, MeshShape{3, 1, 1}, MeshShape{1, 2, 1},
                                 MeshShape{1, 1, 2}, MeshShape{2, 2, 2}}) {
    for (const int64_t micro_batch : {1, 3}) {
      for (const int64_t chunk : {0, 3}) {
        SCOPED_TRACE(StrCat(shape.data, " x ", shape.sequence, " x ", shape.tensor, ", ",
                            micro_batch, " sequences, chunks of ", chunk));
        const Evaluation result = Run(shape, micro_batch, chunk);
        EXPECT_EQ(result.tokens, 1 + 3 + 12 + 3 + 1 + 2);
        EXPECT_EQ(result.accuracy, 19.0 / 22.0);
        EXPECT_EQ(result.exact_sequences, 3.0 / 6.0);
        EXPECT_EQ(result.sequences, kSequences);
        // The token's own logit is the norm's sqrt(8), the others are zero.
        const double own = std::exp(std::sqrt(8.0)), sum = own + 7;
        EXPECT_NEAR(result.loss, (-19 * std::log(own / sum) + 3 * std::log(sum)) / 22, 1e-5);
      }
    }
  }
}

TEST_F(EvaluateTest, RefusesDataThatAsksForNothing) {
  Write(std::vector<Asked>(kSequences * kLength, kNothing));
  for (const MeshShape& shape : {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}}) {
    message_.clear();
    Run(shape, 2, 0);
    EXPECT_EQ(message_, prefix_ + ".labels.bin: no label counts in the first 7 sequences");
  }
}

}  // namespace
}  // namespace eyrie
