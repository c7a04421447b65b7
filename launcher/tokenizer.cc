#include "launcher/tokenizer.h"

#include <sentencepiece_processor.h>

#include "core/error.h"
#include "core/mapped_file.h"

namespace eyrie {
namespace {

constexpr std::string_view kSentencePiece = "sentencepiece:";

class ByteTokenizer : public Tokenizer {
 public:
  int32_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return 256; }

  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size() + 1);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  std::string Decode(std::span<const int32_t> ids) const override {
    std::string text;
    text.reserve(ids.size());
    for (const int32_t id : ids) {
      if (id >= 0 && id < 256) text.push_back(static_cast<char>(id));
    }
    return text;
  }
};

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::string& path) : path_(path) {
    const MappedFile file(path);
    const auto bytes = file.bytes();
    const auto status = processor_.LoadFromSerializedProto(
        {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (bytes.empty() || !status.ok() || processor_.GetPieceSize() == 0) {
      ThrowBadInput(path, ": not a SentencePiece model");
    }
    if (processor_.eos_id() < 0) {
      ThrowBadInput(path, ": the model has no end-of-sentence piece, which documents end with: ",
                    "train it with an eos_id");
    }
  }

  int32_t vocab_size() const override { return processor_.GetPieceSize(); }
  int32_t end_of_document() const override { return processor_.eos_id(); }

  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    if (!status.ok()) ThrowFailure(path_, ": cannot encode: ", status.ToString());
    return ids;
  }

  std::string Decode(std::span<const int32_t> ids) const override {
    std::vector<int> known;
    known.reserve(ids.size());
    for (const int32_t id : ids) {
      if (id >= 0 && id < vocab_size() && !processor_.IsControl(id)) known.push_back(id);
    }
    std::string text;
    const auto status = processor_.Decode(known, &text);
    if (!status.ok()) ThrowFailure(path_, ": cannot decode: ", status.ToString());
    return text;
  }

 private:
  std::string path_;
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::string ModelFileOf(const std::string& spec) {
  return spec.starts_with(kSentencePiece) ? spec.substr(kSentencePiece.size()) : "";
}

std::unique_ptr<Tokenizer> MakeTokenizer(const std::string& spec) {
  if (spec == "byte") return std::make_unique<ByteTokenizer>();
  if (const std::string model = ModelFileOf(spec); !model.empty()) {
    return std::make_unique<SentencePieceTokenizer>(model);
  }
  ThrowBadInput("data.tokenizer / --tokenizer: \"", spec,
                "\" is neither \"byte\" nor \"sentencepiece:MODEL\"");
}

std::unique_ptr<Tokenizer> MakeTokenizer(const std::string& spec, int64_t model_vocab_size) {
  auto tokenizer = MakeTokenizer(spec);
  if (tokenizer->vocab_size() > model_vocab_size) {
    ThrowBadInput("data.tokenizer / --tokenizer: \"", spec, "\" has ", tokenizer->vocab_size(),
                  " ids, more than model.vocab_size = ", model_vocab_size);
  }
  return tokenizer;
}

std::string TextStream::Add(const std::vector<int32_t>& ids) {
  constexpr std::string_view kReplacement = "\xef\xbf\xbd";
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  // Pieces join without a rule of their own, so the text is decoded as a whole each time.
  const std::string text = tokenizer_.Decode(ids_);
  // The bytes of a character that is not whole yet decode as a replacement each.
  size_t whole = text.size();
  while (std::string_view(text).substr(0, whole).ends_with(kReplacement)) {
    whole -= kReplacement.size();
  }
  return TellUpTo(text, whole);
}

std::string TextStream::Rest() {
  const std::string text = tokenizer_.Decode(ids_);
  return TellUpTo(text, text.size());
}

std::string TextStream::TellUpTo(const std::string& text, size_t end) {
  if (end <= told_) return "";
  std::string part = text.substr(told_, end - told_);
  told_ = end;
  return part;
}

}  // namespace eyrie
