#include "launcher/tokenize.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "launcher/indexed_dataset.h"
#include "launcher/tokenizer.h"
#include "tests/launcher/sentencepiece_model.h"
#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

class TokenizeTest : public TempFolderTest {
 protected:
  // The documents of a token file, decoded; each must end with the end of document.
  std::vector<std::string> Documents(const std::string& prefix, const Tokenizer& tokenizer) {
    const IndexedDataset dataset(prefix);
    std::vector<std::string> documents;
    for (int64_t i = 0; i < dataset.documents(); ++i) {
      const int64_t start = dataset.document_start(i);
      std::vector<int32_t> tokens(static_cast<size_t>(dataset.document_start(i + 1) - start));
      dataset.Read(start, static_cast<int64_t>(tokens.size()), tokens.data());
      EXPECT_EQ(tokens.back(), tokenizer.end_of_document());
      documents.push_back(tokenizer.Decode(tokens));
    }
    return documents;
  }
  // Tokenizes by bytes and returns the documents.
  std::vector<std::string> Tokenize(const std::vector<std::string>& inputs, DocumentMode mode) {
    RunTokenize({inputs, "byte", Path("out"), mode});
    return Documents(Path("out"), *MakeTokenizer("byte"));
  }
  std::string Refused(const std::string& input, DocumentMode mode) {
    return BadInput([&] { RunTokenize({{input}, "byte", Path("refused"), mode}); });
  }
};

using Texts = std::vector<std::string>;

TEST_F(TokenizeTest, FilesAreDocuments) {
  const auto one = Write("1", "one\n\ntwo\r\n");
  const auto empty = Write("2", "");
  const auto three = Write("3", std::string_view("\0\xff", 2));
  testing::internal::CaptureStdout();
  EXPECT_EQ(Tokenize({one, empty, three}, DocumentMode::kFile),
            (Texts{"one\n\ntwo\r\n", std::string("\0\xff", 2)}));
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            Path("out") + ": 2 documents, 14 tokens, 12 bytes of text\n");
}

TEST_F(TokenizeTest, ParagraphsAreDocuments) {
  const auto one = Write("1", "\n\n a\nb\r\n \t\n\nc\n");
  const auto two = Write("2", "d");  // does not join the paragraph before
  EXPECT_EQ(Tokenize({one, two}, DocumentMode::kBlankLine), (Texts{" a\nb", "c", "d"}));
}

TEST_F(TokenizeTest, LinesAreDocuments) {
  const auto one = Write("1", "a b\n\nc\r\n  \nd");
  EXPECT_EQ(Tokenize({one, one}, DocumentMode::kLine), (Texts{"a b", "c", "d", "a b", "c", "d"}));
}

TEST_F(TokenizeTest, JsonTextsAreDocuments) {
  const auto one = Write("1",
                         "{\"id\": 1, \"text\": \"a\\n\\u00e9\"}\n\n{\"text\": \"\"}\r\n"
                         "{\"text\": \"b\", \"more\": [{}]}");
  EXPECT_EQ(Tokenize({one}, DocumentMode::kJsonl), (Texts{"a\n\xc3\xa9", "b"}));
}

TEST_F(TokenizeTest, RefusesBadJsonWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"text\": \"b\"", "not valid JSON"},
      {"{\"text\": \"\xff\"}", "not valid JSON"},
      {"[\"text\"]", "not a JSON object"},
      {"{\"txt\": \"b\"}", "no field \"text\""},
      {"{\"text\": 3}", "field \"text\" is not a string"},
  };
  for (const auto& [line, problem] : cases) {
    const auto file = Write("bad.jsonl", StrCat("{\"text\": \"a\"}\n\n", line, "\n"));
    EXPECT_EQ(Refused(file, DocumentMode::kJsonl), file + ":3: " + problem);
  }
  EXPECT_FALSE(std::filesystem::exists(Path("refused.bin")));
  EXPECT_FALSE(std::filesystem::exists(Path("refused.bin.partial")));
  const auto deep = Write("deep.jsonl", std::string(1 << 20, '['));
  EXPECT_EQ(Refused(deep, DocumentMode::kJsonl), deep + ":1: not valid JSON");
}

TEST_F(TokenizeTest, RefusesInputWithoutText) {
  for (const auto mode : {DocumentMode::kFile, DocumentMode::kBlankLine, DocumentMode::kJsonl}) {
    EXPECT_EQ(Refused(Write("empty", ""), mode), Path("empty") + ": no text in it");
  }
  EXPECT_EQ(Refused(Write("blank", "\n \n"), DocumentMode::kLine),
            Path("blank") + ": no text in it");
  EXPECT_EQ(Refused(Path("none"), DocumentMode::kFile),
            Path("none") + ": cannot open: No such file or directory");
  EXPECT_EQ(Refused(Path(""), DocumentMode::kFile), Path("") + ": is a folder");
  EXPECT_EQ(BadInput([&] {
              RunTokenize({{}, "byte", Path("x"), DocumentMode::kFile});
            }),
            "--input: no file given");
  const auto text = Write("text", "a");
  EXPECT_EQ(BadInput([&] {
              RunTokenize({{text}, "byte", Path(""), DocumentMode::kFile});
            }),
            "--output: \"" + Path("") + "\" is not the prefix of a file name");
  EXPECT_EQ(BadInput([&] {
              RunTokenize({{text}, "none", Path("x"), DocumentMode::kFile});
            }),
            "data.tokenizer / --tokenizer: \"none\" is neither \"byte\" nor "
            "\"sentencepiece:MODEL\"");
}

// Several batches of documents; any number of threads writes the same bytes.
TEST_F(TokenizeTest, ThreadsDoNotChangeTheOutput) {
  std::string text;
  Texts expected;
  for (int i = 0; i < 70000; ++i) {
    expected.push_back(StrCat("the cat sat on mat ", i));
    text += expected.back() + "\n";
  }
  const auto file = Write("text", text);
  const std::string spec = "sentencepiece:" + TrainSentencePiece(Path("spm"));
  const int threads = omp_get_max_threads();
  for (const int count : {1, 4}) {
    omp_set_num_threads(count);
    RunTokenize({{file}, spec, Path(StrCat("out", count)), DocumentMode::kLine});
  }
  omp_set_num_threads(threads);
  EXPECT_EQ(Slurp(Path("out1.bin")), Slurp(Path("out4.bin")));
  EXPECT_EQ(Slurp(Path("out1.idx")), Slurp(Path("out4.idx")));
  EXPECT_EQ(Documents(Path("out4"), *MakeTokenizer(spec)), expected);
}

}  // namespace
}  // namespace eyrie
