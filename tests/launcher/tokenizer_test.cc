#include "launcher/tokenizer.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "configs/schema/config.pb.h"
#include "tests/launcher/sentencepiece_model.h"
#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

class TokenizerTest : public TempFolderTest {};

TEST_F(TokenizerTest, BytesStandForThemselves) {
  const auto tokenizer = MakeTokenizer("byte");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  EXPECT_EQ(tokenizer->Encode(std::string_view("a\0\xff", 3)), (std::vector<int32_t>{97, 0, 255}));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{72, 105, 256, -1, 300, 33}), "Hi!");
  EXPECT_TRUE(tokenizer->Encode("").empty());
}

TEST_F(TokenizerTest, SentencePieceRoundTrips) {
  const std::string model = TrainSentencePiece(Path("spm"));
  const auto tokenizer = MakeTokenizer("sentencepiece:" + model);
  EXPECT_EQ(tokenizer->vocab_size(), 320);
  EXPECT_EQ(tokenizer->end_of_document(), 2);
  for (const std::string text : {"the cat sat", "two\nlines  and\tblanks ", "na\xc3\xafve", ""}) {
    const auto ids = tokenizer->Encode(text);
    for (const int32_t id : ids) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, 320);
      EXPECT_NE(id, 2);
    }
    EXPECT_EQ(tokenizer->Decode(ids), text);
  }
  EXPECT_LT(tokenizer->Encode("the cat sat").size(), 8u);
}

TEST_F(TokenizerTest, SentencePieceLeavesOutWhatIsNoText) {
  const auto tokenizer = MakeTokenizer("sentencepiece:" + TrainSentencePiece(Path("spm")));
  auto ids = tokenizer->Encode("the cat");
  ids.insert(ids.end(), {2, -1, 320, 1 << 30});
  EXPECT_EQ(tokenizer->Decode(ids), "the cat");
}

TEST_F(TokenizerTest, SentencePieceReplacesInvalidUtf8) {
  const auto tokenizer = MakeTokenizer("sentencepiece:" + TrainSentencePiece(Path("spm")));
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("a\xff z")), "a\xef\xbf\xbd z");
}

TEST_F(TokenizerTest, TextIsToldInWholeCharacters) {
  const auto tokenizer = MakeTokenizer("sentencepiece:" + TrainSentencePiece(Path("spm")));
  const std::string text = "the \u20ac dog\U0001f600\u00e9 \xef\xbf\xbd\xef\xbf\xbd cat";
  TextStream stream(*tokenizer);
  std::string told;
  size_t parts = 0;
  for (const int32_t id : tokenizer->Encode(text)) {
    const std::string part = stream.Add({id});
    parts += !part.empty();
    told += part;
    EXPECT_EQ(text.substr(0, told.size()), told);
    // No part ends inside a character.
    if (told.size() < text.size()) {
      EXPECT_NE(static_cast<unsigned char>(text[told.size()]) & 0xc0, 0x80);
    }
  }
  EXPECT_EQ(told, text);
  EXPECT_GT(parts, 6u);
  EXPECT_EQ(stream.Rest(), "");

  // One that ends inside a character: two of the bytes of U+20AC.
  const auto euro = tokenizer->Encode("cat \u20ac");
  TextStream cut(*tokenizer);
  EXPECT_EQ(cut.Add({euro.begin(), euro.end() - 1}), "cat ");
  EXPECT_EQ(cut.Rest(), "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(cut.Rest(), "");
}

TEST_F(TokenizerTest, BytesAreToldAsTheyCome) {
  const auto tokenizer = MakeTokenizer("byte");
  TextStream stream(*tokenizer);
  EXPECT_EQ(stream.Add({0xe2, 0x82}), "\xe2\x82");
  EXPECT_EQ(stream.Add({0xac, 256, 'x'}), "\xacx");
  EXPECT_EQ(stream.Rest(), "");
}

// Debian's libsentencepiece brings an old copy of Protobuf along, under the same symbols as ours:
// CMakeLists.txt keeps them apart.
TEST_F(TokenizerTest, LivesBesideProtobuf) {
  const std::string model = TrainSentencePiece(Path("spm"));
  for (int round = 0; round < 2; ++round) {
    config::Config config;
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
        "data { train: \"a prefix longer than a short string\" } model { pattern: \"recurrent\" }",
        &config));
    config::Config copy;
    ASSERT_TRUE(copy.ParseFromString(config.SerializeAsString()));
    EXPECT_EQ(copy.DebugString(), config.DebugString());
    const auto tokenizer = MakeTokenizer("sentencepiece:" + model);
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("the cat")), "the cat");
  }
}

TEST_F(TokenizerTest, RefusesBadSpecs) {
  for (const std::string spec : {"", "bytes", "sentencepiece", "sentencepiece:", "bpe:x"}) {
    EXPECT_EQ(BadInput([&] { MakeTokenizer(spec); }),
              "data.tokenizer / --tokenizer: \"" + spec +
                  "\" is neither \"byte\" nor \"sentencepiece:MODEL\"");
  }
}

TEST_F(TokenizerTest, RefusesBadModels) {
  const auto refused = [&](const std::string& path) {
    return BadInput([&] { MakeTokenizer("sentencepiece:" + path); });
  };
  EXPECT_EQ(refused(Path("none")), Path("none") + ": cannot open: No such file or directory");
  const std::string model = Slurp(TrainSentencePiece(Path("spm")));
  for (const std::string& bytes : {std::string(), std::string("hello"), std::string(100, '\0'),
                                   model.substr(0, model.size() / 2)}) {
    EXPECT_EQ(refused(Write("bad", bytes)), Path("bad") + ": not a SentencePiece model");
  }
  EXPECT_EQ(refused(TrainSentencePiece(Path("no_eos"), /*eos_id=*/-1)),
            Path("no_eos.model") +
                ": the model has no end-of-sentence piece, which documents end with: train it "
                "with an eos_id");
}

}  // namespace
}  // namespace eyrie
