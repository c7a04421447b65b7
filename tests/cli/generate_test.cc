// eyrie generate with a vocabulary whose pieces are bytes of characters.
#include <gtest/gtest.h>

#include "tests/launcher/sentencepiece_model.h"
#include "tests/support/training_test.h"

namespace eyrie {
namespace {

class GenerateTest : public TrainingTest {};

// A character that the vocabulary lacks comes as a token for each of its bytes. It is printed when
// it is whole, and what follows it too.
TEST_F(GenerateTest, PrintsCharactersThatComeByteByByte) {
  const std::string text = WriteText(directory_ / "euro.txt", "€€€€€€€€€€€€");
  const std::string tokenizer =
      "sentencepiece:" + TrainSentencePiece((directory_ / "spm").string());
  std::vector<std::string> tokenize = {"tokenize", "--tokenizer", tokenizer,
                                       "--output", data_,         "--input"};
  tokenize.insert(tokenize.end(), 20, text);
  ASSERT_EQ(RunEyrie(0, tokenize).code, 0);
  const ProcessResult trained =
      Train(0, {"model.vocab_size=320", "data.tokenizer=" + tokenizer, "train.steps=30",
                "train.validation_interval=0", "optimizer.learning_rate=1e-2"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  // Three tokens a character; the last one remains a part.
  for (const auto& [tokens, printed] :
       {std::pair{"6", "€€€\n"}, {"9", "€€€€\n"}, {"7", "€€€\xef\xbf\xbd\n"}}) {
    const ProcessResult result = RunEyrie(0, {"generate", "--checkpoint", run_.string(), "--prompt",
                                              "€", "--max-tokens", tokens, "--temperature", "0"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.out, printed);
  }
}

}  // namespace
}  // namespace eyrie
