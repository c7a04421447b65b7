// A tiny SentencePiece model for tests, trained on the spot.
#pragma once

#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <fstream>
#include <string>

namespace eyrie {

// Trains a lossless vocabulary of 320 pieces and returns the path PREFIX.model. An
// `eos_id` of -1 leaves the end-of-sentence piece out.
inline std::string TrainSentencePiece(const std::string& prefix, int eos_id = 2) {
  const std::string text = prefix + ".txt";
  {
    std::ofstream file(text);
    for (int i = 0; i < 50; ++i) {
      file << "the cat sat on the mat and the dog sat on the log\n"
           << "a dog and a cat ran after the other cat\n"
           << "what the cat saw was that the dog was on the mat\n";
    }
  }
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--input=" + text + " --model_prefix=" + prefix +
      " --model_type=bpe --vocab_size=320 --byte_fallback=true --unk_id=0 --bos_id=-1"
      " --pad_id=1 --normalization_rule_name=identity --remove_extra_whitespaces=false"
      " --hard_vocab_limit=true --minloglevel=2 --eos_id=" +
      std::to_string(eos_id));
  EXPECT_TRUE(status.ok()) << status.ToString();
  return prefix + ".model";
}

}  // namespace eyrie
