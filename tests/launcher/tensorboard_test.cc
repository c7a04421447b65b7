// Event files, read back by a reader that shares nothing with the writer: TFRecord framing, CRC-32C
// bit by bit, and Protobuf's wire format by hand.
#include "launcher/tensorboard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

namespace fs = std::filesystem;

uint32_t Crc32c(const std::string& bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
  }
  return crc ^ 0xffffffffu;
}

uint32_t Masked(const std::string& bytes) {
  const uint32_t crc = Crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

uint64_t Number(const std::string& bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

std::vector<std::string> Records(const std::string& file) {
  std::vector<std::string> records;
  size_t at = 0;
  const auto take = [&](size_t count) {
    EXPECT_LE(at + count, file.size());
    at += count;
    return at <= file.size() ? file.substr(at - count, count) : std::string(count, '\0');
  };
  while (at < file.size() && !testing::Test::HasFailure()) {
    const std::string length = take(8);
    EXPECT_EQ(Number(take(4)), Masked(length));
    records.push_back(take(Number(length)));
    EXPECT_EQ(Number(take(4)), Masked(records.back()));
  }
  return records;
}

// The fields of a message: number to raw contents; numbers are little-endian bytes.
std::multimap<int, std::string> Fields(const std::string& message) {
  std::multimap<int, std::string> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(message.at(at++));
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < message.size()) {
    const uint64_t key = varint();
    std::string content;
    if ((key & 7) == 0) {
      const uint64_t value = varint();
      content.assign(reinterpret_cast<const char*>(&value), sizeof value);
    } else {
      const size_t size = (key & 7) == 1 ? 8 : (key & 7) == 5 ? 4 : varint();
      content = message.substr(at, size);
      at += size;
    }
    fields.emplace(static_cast<int>(key >> 3), content);
  }
  return fields;
}

template <class T>
T As(const std::string& bytes) {
  T value;
  EXPECT_EQ(bytes.size(), sizeof value);
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::string One(const std::multimap<int, std::string>& fields, int number) {
  EXPECT_EQ(fields.count(number), 1u) << number;
  const auto found = fields.find(number);
  return found == fields.end() ? std::string() : found->second;
}

class TensorboardTest : public TempFolderTest {
 protected:
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(Path(""))) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }
};

TEST_F(TensorboardTest, AnotherReaderSeesTheScalars) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);  // the published check value
  {
    TensorboardWriter writer(Path(""), 0);
    writer.Write({.step = 1,
                  .loss = 4.25,
                  .grad_norm = 1.5,
                  .learning_rate = 3e-3,
                  .tokens_per_second = 1234.5});
    writer.Write({.step = 300,
                  .loss = 2.0,
                  .grad_norm = 0.5,
                  .learning_rate = 1e-3,
                  .tokens_per_second = 99.0,
                  .validation_loss = 2.5,
                  .validation_accuracy = 0.25});
  }
  ASSERT_EQ(Files().size(), 1u);
  const std::vector<std::string> records = Records(Slurp(Files()[0]));
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(One(Fields(records[0]), 3), "brain.Event:2");
  const auto start = Fields(records[1]);
  EXPECT_EQ(As<int64_t>(One(start, 2)), 1);
  EXPECT_EQ(As<int64_t>(One(Fields(One(start, 7)), 1)), 1);

  const std::map<std::string, float> expected[] = {{{"loss", 4.25f},
                                                    {"grad_norm", 1.5f},
                                                    {"learning_rate", 3e-3f},
                                                    {"tokens_per_second", 1234.5f}},
                                                   {{"loss", 2.0f},
                                                    {"grad_norm", 0.5f},
                                                    {"learning_rate", 1e-3f},
                                                    {"tokens_per_second", 99.0f},
                                                    {"validation_loss", 2.5f},
                                                    {"validation_accuracy", 0.25f}}};
  const int64_t steps[] = {1, 300};
  for (size_t i = 0; i < 2; ++i) {
    const auto event = Fields(records[2 + i]);
    EXPECT_GT(As<double>(One(event, 1)), 1.7e9);
    EXPECT_EQ(As<int64_t>(One(event, 2)), steps[i]);
    std::map<std::string, float> scalars;
    for (const auto& [number, value] : Fields(One(event, 5))) {
      EXPECT_EQ(number, 1);
      const auto fields = Fields(value);
      scalars[One(fields, 1)] = As<float>(One(fields, 2));
    }
    EXPECT_EQ(scalars, expected[i]);
  }
}

TEST_F(TensorboardTest, EachRunOpensALaterFile) {
  std::set<std::string> seen;
  for (int64_t run = 0; run < 3; ++run) {
    TensorboardWriter(Path(""), run * 10);
    const auto files = Files();
    ASSERT_EQ(files.size(), static_cast<size_t>(run + 1));
    // The new one is last.
    EXPECT_TRUE(seen.insert(files.back()).second);
    EXPECT_TRUE(files.back().filename().string().starts_with("events.out.tfevents."));
    EXPECT_EQ(As<int64_t>(One(Fields(Records(Slurp(files.back())).at(1)), 2)), run * 10 + 1);
  }
}

TEST_F(TensorboardTest, AFileThatCannotBeOpenedIsNamed) {
  try {
    TensorboardWriter(Path("missing"), 0);
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("missing"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace eyrie
