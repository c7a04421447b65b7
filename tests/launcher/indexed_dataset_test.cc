#include "launcher/indexed_dataset.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

std::string Golden(const std::string& name) {
  return EYRIE_SOURCE_DIR "/tests/golden/megatron_indexed/" + name;
}

std::vector<int32_t> ReadAll(const IndexedDataset& dataset) {
  std::vector<int32_t> tokens(static_cast<size_t>(dataset.total_tokens()));
  dataset.Read(0, dataset.total_tokens(), tokens.data());
  return tokens;
}

std::vector<int64_t> DocumentStarts(const IndexedDataset& dataset) {
  std::vector<int64_t> starts;
  for (int64_t i = 0; i <= dataset.documents(); ++i) starts.push_back(dataset.document_start(i));
  return starts;
}

// The bytes of an index, any of whose parts may be wrong.
struct Index {
  std::string magic{"MMIDIDX\0\0", 9};
  uint64_t version = 1;
  uint8_t type = 8;
  std::vector<int32_t> sizes = {2, 3};
  std::vector<int64_t> offsets = {0, 4};
  std::vector<int64_t> documents = {0, 1, 2};
  uint64_t items = 2;
  uint64_t entries = 3;
  std::string tail;

  std::string Bytes() const {
    std::string bytes = magic;
    const auto put = [&](const void* from, size_t size) {
      bytes.append(static_cast<const char*>(from), size);
    };
    put(&version, 8);
    put(&type, 1);
    put(&items, 8);
    put(&entries, 8);
    put(sizes.data(), sizes.size() * 4);
    put(offsets.data(), offsets.size() * 8);
    put(documents.data(), documents.size() * 8);
    return bytes + tail;
  }
};

class IndexedDatasetTest : public TempFolderTest {
 protected:
  std::string Make(const Index& index, std::string_view data = "0123456789") {
    Write("x.bin", data);
    Write("x.idx", index.Bytes());
    return Path("x");
  }
  // What follows "FILE: " in the error on opening this dataset, FILE being x.idx or x.bin.
  std::string Refused(const Index& index, const char* file = "x.idx",
                      std::string_view data = "0123456789") {
    const std::string prefix = Make(index, data);
    const std::string message = BadInput([&] { IndexedDataset{prefix}; });
    const std::string start = Path(file) + ": ";
    EXPECT_TRUE(message.starts_with(start)) << message;
    return message.substr(std::min(message.size(), start.size()));
  }
};

TEST_F(IndexedDatasetTest, ReadsWhatMegatronWrote) {
  for (const char* name : {"uint16", "uint8", "int8", "int16"}) {
    const IndexedDataset dataset(Golden(name));
    EXPECT_EQ(ReadAll(dataset), (std::vector<int32_t>{3, 1, 4, 1, 5, 92, 65, 35, 89, 79})) << name;
    EXPECT_EQ(DocumentStarts(dataset), (std::vector<int64_t>{0, 5, 5, 6, 10})) << name;
  }
  for (const char* name : {"int32", "int64"}) {
    const IndexedDataset dataset(Golden(name));
    EXPECT_EQ(ReadAll(dataset), (std::vector<int32_t>{70000, 2, 2147483647, 65535, 65536})) << name;
    EXPECT_EQ(DocumentStarts(dataset), (std::vector<int64_t>{0, 3, 5})) << name;
  }
  for (const char* name : {"several_items", "multimodal"}) {
    const IndexedDataset dataset(Golden(name));
    EXPECT_EQ(ReadAll(dataset), (std::vector<int32_t>{10, 11, 12, 13, 14, 15, 16, 17, 18}));
    EXPECT_EQ(DocumentStarts(dataset), (std::vector<int64_t>{0, 2, 6, 9})) << name;
    EXPECT_EQ(dataset.items(), 6);
  }
}

TEST_F(IndexedDatasetTest, WritesMegatronsBytes) {
  const auto compare = [&](const char* name, int64_t vocab_size,
                           const std::vector<std::vector<int32_t>>& documents) {
    IndexedDatasetWriter writer(Path(name), vocab_size);
    for (const auto& document : documents) writer.AddDocument(document);
    writer.Finish();
    for (const std::string suffix : {".bin", ".idx"}) {
      EXPECT_EQ(Slurp(Path(name + suffix)), Slurp(Golden(name + suffix))) << name << suffix;
    }
  };
  compare("uint16", 65499, {{3, 1, 4, 1, 5}, {}, {92}, {65, 35, 89, 79}});
  compare("int32", int64_t{1} << 31, {{70000, 2, 2147483647}, {65535, 65536}});
}

TEST_F(IndexedDatasetTest, WriterChoosesTheType) {
  EXPECT_EQ(TokenTypeFor(2), TokenType::kUint16);
  EXPECT_EQ(TokenTypeFor(65499), TokenType::kUint16);
  EXPECT_EQ(TokenTypeFor(65500), TokenType::kInt32);
}

TEST_F(IndexedDatasetTest, WriterShowsNothingUnfinished) {
  {
    IndexedDatasetWriter writer(Path("new/folder/x"), 10);
    writer.AddDocument(std::vector<int32_t>{1, 2});
    EXPECT_FALSE(std::filesystem::exists(Path("new/folder/x.bin")));
  }
  EXPECT_TRUE(std::filesystem::is_empty(Path("new/folder")));
  IndexedDatasetWriter writer(Path("x"), 10);
  EXPECT_THROW(writer.AddDocument(std::vector<int32_t>{10}), Error);
  EXPECT_THROW(writer.AddDocument(std::vector<int32_t>{-1}), Error);
  Write("file", "");
  EXPECT_EQ(BadInput([&] { IndexedDatasetWriter(Path("file/x"), 10); }),
            Path("file") + ": cannot create: Not a directory");
}

TEST_F(IndexedDatasetTest, ReadsAnyRange) {
  for (const bool gaps : {false, true}) {
    Index index;
    index.type = 1;
    index.items = 4;
    index.sizes = {3, 0, 2, 4};
    index.offsets = gaps ? std::vector<int64_t>{6, 1, 0, 2} : std::vector<int64_t>{1, 4, 4, 6};
    index.documents = {0, 1, 4};
    const IndexedDataset dataset(Make(index));
    const std::string all = gaps ? "678012345" : "123456789";
    ASSERT_EQ(dataset.total_tokens(), 9);
    for (int64_t first = 0; first <= 9; ++first) {
      for (int64_t count = 0; first + count <= 9; ++count) {
        std::vector<int32_t> tokens(static_cast<size_t>(count));
        dataset.Read(first, count, tokens.data());
        EXPECT_EQ(std::string(tokens.begin(), tokens.end()),
                  all.substr(static_cast<size_t>(first), static_cast<size_t>(count)));
      }
    }
    EXPECT_THROW(dataset.Read(9, 1, nullptr), Error);
    EXPECT_THROW(dataset.Read(-1, 1, nullptr), Error);
    EXPECT_EQ(DocumentStarts(dataset), (std::vector<int64_t>{0, 3, 9}));
  }
}

TEST_F(IndexedDatasetTest, FindsDocuments) {
  const IndexedDataset dataset(Golden("uint16"));  // documents start at 0, 5, 5, 6
  const std::vector<int64_t> expected = {0, 0, 0, 0, 0, 5, 6, 6, 6, 6};
  for (int64_t token = 0; token < 10; ++token) {
    EXPECT_EQ(dataset.DocumentStartAtOrBefore(token), expected[static_cast<size_t>(token)]);
  }
  EXPECT_THROW(dataset.DocumentStartAtOrBefore(10), Error);
}

TEST_F(IndexedDatasetTest, EmptyDatasetIsValid) {
  IndexedDatasetWriter(Path("x"), 10).Finish();
  const IndexedDataset dataset(Path("x"));
  EXPECT_EQ(dataset.total_tokens(), 0);
  EXPECT_EQ(dataset.documents(), 0);
  dataset.CheckTokens(0, 0, 0);
}

TEST_F(IndexedDatasetTest, ChecksTokens) {
  const IndexedDataset dataset(Golden("uint16"));
  dataset.CheckTokens(92, 0, 10);
  dataset.CheckTokens(91, 6, 4);
  EXPECT_EQ(BadInput([&] { dataset.CheckTokens(91, 1, 9); }),
            Golden("uint16") + ".bin: token 5 has id 92, but model.vocab_size is 92");

  Index index;
  index.type = 2;
  index.offsets = {0, 2};
  const IndexedDataset negative(Make(index, std::string("\1\2\xff\4\5\0\0\0", 8)));
  EXPECT_EQ(BadInput([&] { negative.CheckTokens(91, 0, 5); }),
            Path("x.bin") + ": token 2 has id -1, but model.vocab_size is 92");

  index.type = 5;
  index.offsets = {0, 16};
  std::string data(40, '\0');
  data[28] = 1;
  const IndexedDataset wide(Make(index, data));
  EXPECT_EQ(BadInput([&] { wide.CheckTokens(91, 0, 5); }),
            Path("x.bin") + ": token 3 has id 4294967296, but model.vocab_size is 92");
  EXPECT_EQ(BadInput([&] { ReadAll(wide); }),
            Path("x.bin") + ": token 3 has id 4294967296, which no vocabulary holds");
}

TEST_F(IndexedDatasetTest, RefusesMissingFiles) {
  EXPECT_EQ(BadInput([&] { IndexedDataset(Path("x")); }),
            Path("x.idx") + ": cannot open: No such file or directory");
  Write("x.idx", Index().Bytes());
  EXPECT_EQ(BadInput([&] { IndexedDataset(Path("x")); }),
            Path("x.bin") + ": cannot open: No such file or directory");
  std::filesystem::create_directory(Path("x.bin"));
  EXPECT_EQ(BadInput([&] { IndexedDataset(Path("x")); }), Path("x.bin") + ": not a regular file");
}

TEST_F(IndexedDatasetTest, RefusesBadHeaders) {
  Index index;
  index.magic = "MMIDIDY";
  index.magic.resize(9);
  EXPECT_EQ(Refused(index), "not the index of a Megatron indexed dataset (wrong first 9 bytes)");
  index = {};
  index.version = 2;
  EXPECT_EQ(Refused(index), "version 2, but only 1 is known");
  index = {};
  index.type = 0;
  EXPECT_EQ(Refused(index), "unknown dtype code 0");
  index.type = 9;
  EXPECT_EQ(Refused(index), "unknown dtype code 9");
  index.type = 7;
  EXPECT_EQ(Refused(index), "dtype code 7 is a float, but token ids are integers");

  Write("x.bin", "");
  for (const size_t size : {0, 1, 33}) {
    Write("x.idx", Index().Bytes().substr(0, size));
    EXPECT_EQ(BadInput([&] { IndexedDataset(Path("x")); }),
              Path("x.idx") + StrCat(": ", size, " bytes, but the header alone takes 34"));
  }
}

TEST_F(IndexedDatasetTest, RefusesBadCounts) {
  for (const uint64_t count : {uint64_t{3}, uint64_t{1} << 62, ~uint64_t{0}}) {
    Index index;
    index.items = count;
    EXPECT_EQ(Refused(index), StrCat("82 bytes are too few for ", count,
                                     " items and 3 document entries: truncated or damaged"));
    index = {};
    index.entries = count + (count == 3);
    EXPECT_EQ(Refused(index), StrCat("82 bytes are too few for 2 items and ", index.entries,
                                     " document entries: truncated or damaged"));
  }
  Index index;
  index.entries = 2;
  EXPECT_EQ(Refused(index), "8 bytes too many for 2 items and 2 document entries");
  index = {};
  index.entries = 0;
  index.documents = {};
  EXPECT_EQ(Refused(index), "the document index is empty, but begins with 0");
}

TEST_F(IndexedDatasetTest, RefusesBadItemsAndDocuments) {
  Index index;
  index.sizes[1] = -3;
  EXPECT_EQ(Refused(index), "item 1 has a negative size, -3");
  index = {};
  index.offsets[0] = -4;
  EXPECT_EQ(Refused(index), "item 0 has a negative offset, -4");
  const std::string short_of = "9 bytes, too short for " + Path("x.idx");
  EXPECT_EQ(Refused({}, "x.bin", "012345678"),
            short_of + ": item 1 has 3 tokens of 2 bytes at byte 4");
  index = {};
  index.offsets[1] = INT64_MAX;
  EXPECT_EQ(Refused(index, "x.bin", "012345678"),
            short_of + ": item 1 has 3 tokens of 2 bytes at byte 9223372036854775807");
  index = {};
  index.documents[0] = 1;
  EXPECT_EQ(Refused(index), "the document index begins with 1 instead of 0");
  index = {};
  index.documents[1] = 3;
  EXPECT_EQ(Refused(index), "the document index falls from 3 to 2 at entry 2");
  index = {};
  index.documents[2] = 1;
  EXPECT_EQ(Refused(index), "the document index ends at item 1, but there are 2 items");
}

// Damaged files are refused, or read without harm.
TEST_F(IndexedDatasetTest, SurvivesHostileBytes) {
  std::mt19937 random(1);
  const std::string good = Slurp(Golden("several_items.idx"));
  const std::string data = Slurp(Golden("several_items.bin"));
  int opened = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = good;
    for (uint32_t changes = 1 + random() % 3; changes > 0; --changes) {
      const std::string values("\0\1\7\x7f\x80\xff", 6);
      bytes[random() % bytes.size()] =
          round % 2 == 0 ? values[random() % 6] : static_cast<char>(random());
    }
    if (round % 7 == 0) bytes.resize(random() % bytes.size());
    Write("x.idx", bytes);
    Write("x.bin", std::string_view(data).substr(0, round % 5 == 0 ? random() % 18 : 18));
    try {
      const IndexedDataset dataset(Path("x"));
      ReadAll(dataset);
      for (int64_t i = 0; i < dataset.total_tokens(); ++i) dataset.DocumentStartAtOrBefore(i);
      ++opened;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput) << error.what();
    }
  }
  EXPECT_GT(opened, 0);
}

}  // namespace
}  // namespace eyrie
