// `eyrie tokenize`: its options, and what it refuses. tests/launcher/tokenize_test.cc has the rest.
#include "tests/launcher/temp_folder.h"
#include "tests/support/eyrie_process.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

class TokenizeCommandTest : public TempFolderTest {
 protected:
  ProcessResult Tokenize(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "tokenize");
    arguments.insert(arguments.end(), {"--output", Path("out")});
    return RunEyrie(0, arguments);
  }
};

TEST_F(TokenizeCommandTest, TakesSeveralFilesInOrder) {
  const std::string a = Write("a", "x\ny\n"), b = Write("b", "z");
  const ProcessResult result =
      Tokenize({"--input", a, b, "--tokenizer", "byte", "--documents", "line"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, Path("out") + ": 3 documents, 6 tokens, 3 bytes of text\n");
  const IndexedDataset dataset(Path("out"));
  ASSERT_EQ(dataset.documents(), 3);
  std::vector<int32_t> tokens(6);
  dataset.Read(0, 6, tokens.data());
  EXPECT_EQ(tokens, (std::vector<int32_t>{'x', 256, 'y', 256, 'z', 256}));
}

TEST_F(TokenizeCommandTest, RefusesBadInput) {
  const std::string text = Write("text", "some text");
  ExpectRefused(Tokenize({"--input", text, "--tokenizer", "byte", "--documents", "word"}),
                {"--documents: \"word\" is none of file, blank-line, line, jsonl"});
  ExpectRefused(Tokenize({"--input", text}), {"--tokenizer is required"});
  ExpectRefused(Tokenize({"--input", Path("none"), "--tokenizer", "byte"}), {Path("none")});
  ExpectRefused(Tokenize({"--input", Write("empty", ""), "--tokenizer", "byte"}),
                {Path("empty"), "no text in it"});
  EXPECT_FALSE(fs::exists(Path("out.bin")));
}

TEST_F(TokenizeCommandTest, HelpNamesTheTokenizers) {
  const ProcessResult result = RunEyrie(0, {"tokenize", "--help"});
  EXPECT_EQ(result.code, 0);
  EXPECT_NE(result.out.find("byte|sentencepiece:MODEL"), std::string::npos) << result.out;
}

}  // namespace
}  // namespace eyrie
