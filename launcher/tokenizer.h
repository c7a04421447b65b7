// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace eyrie {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids are below this.
  virtual int32_t vocab_size() const = 0;
  // The id that ends each document of a token file.
  virtual int32_t end_of_document() const = 0;
  // The ids of `text`, without the end of document. Thread-safe.
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;
  // Ids that stand for no text (end of document, ids outside the vocabulary, which a padded
  // embedding can sample) are left out. A model may cut UTF-8 sequences anywhere, so the result
  // need not be valid UTF-8 either.
  virtual std::string Decode(std::span<const int32_t> ids) const = 0;
};

// `spec` is the value of data.tokenizer or --tokenizer:
//   byte                 ids 0 to 255 are bytes, 256 ends a document
//   sentencepiece:MODEL  a model file of the SentencePiece library; its </s> ends a document
// The byte tokenizer takes any bytes. SentencePiece takes UTF-8: bytes that are not valid are read
// as U+FFFD, the replacement character.
// Throws kBadInput with one line naming the setting, or the model file and what is wrong with it.
std::unique_ptr<Tokenizer> MakeTokenizer(const std::string& spec);
// The model file that a `spec` names; "" of the byte tokenizer.
std::string ModelFileOf(const std::string& spec);
// Also refuses a tokenizer with more ids than the model's embedding has rows.
std::unique_ptr<Tokenizer> MakeTokenizer(const std::string& spec, int64_t model_vocab_size);

// The text of ids that come one after another, told part by part.
class TextStream {
 public:
  // Keeps a reference.
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // What the text so far has beyond the parts told before. A character may come as several ids, a
  // byte each, and is told when it is whole.
  std::string Add(const std::vector<int32_t>& ids);
  // What is left of a text that ends here: of a character without its last bytes, U+FFFD for each.
  std::string Rest();

 private:
  std::string TellUpTo(const std::string& text, size_t end);

  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  size_t told_ = 0;  // bytes
};

}  // namespace eyrie
