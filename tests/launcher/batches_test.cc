#include "launcher/batches.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/launcher/temp_folder.h"

namespace eyrie {
namespace {

constexpr int64_t kLength = 12, kVocab = 1000;

class BatchesTest : public TempFolderTest {
 protected:
  BatchesTest() : prefix_(Path("data")) {
    // Documents of 1 to 9 tokens, and a long one; token i of the stream is i.
    IndexedDatasetWriter writer(prefix_, kVocab);
    int32_t next = 0;
    for (const int length : {5, 1, 9, 2, 40, 3, 7, 1, 1, 4, 8}) {
      std::vector<int32_t> document;
      for (int i = 0; i < length; ++i) {
        position_of_.push_back(i);
        document.push_back(next++);
      }
      writer.AddDocument(document);
    }
    writer.Finish();
  }
  BatchReader::Options Options() const {
    return {.prefix = prefix_, .max_batch = 3, .length = kLength, .vocab_size = kVocab};
  }

  std::string prefix_;
  std::vector<int32_t> position_of_;  // inside its document, by place in the stream
};

TEST_F(BatchesTest, PositionsRestartWithEachDocument) {
  BatchReader reader(Options());
  for (int64_t first = 0; first + 3 <= reader.sampler().windows(); ++first) {
    const Model::Batch batch = reader.Read(first, 3);
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t start = reader.sampler().FirstToken(first + i);
      for (int64_t t = 0; t < kLength; ++t) {
        const int64_t at = i * kLength + t;
        EXPECT_EQ(batch.tokens.data<int32_t>()[at], start + t);
        EXPECT_EQ(batch.labels.data<int32_t>()[at], start + t + 1);
        // A document that began before the sequence counts from the sequence's start.
        const int64_t expected = std::min<int64_t>(position_of_[static_cast<size_t>(start + t)], t);
        EXPECT_EQ(reader.positions(3).data<int32_t>()[at], expected) << start << "+" << t;
      }
    }
  }
}

TEST_F(BatchesTest, ContinuousSequencesAreOneDocument) {
  BatchReader::Options options = Options();
  options.packing = config::DataConfig::CONTINUOUS;
  BatchReader reader(options);
  reader.Read(1, 2);
  for (int64_t i = 0; i < 2 * kLength; ++i) {
    EXPECT_EQ(reader.positions(2).data<int32_t>()[i], i % kLength);
  }
}

TEST_F(BatchesTest, ChunksOfASequenceMakeTheWhole) {
  BatchReader whole(Options());
  const Model::Batch expected = whole.Read(2, 3);
  for (int chunk = 0; chunk < 4; ++chunk) {
    BatchReader::Options options = Options();
    options.chunk = chunk;
    options.chunks = 4;
    BatchReader part(options);
    const Model::Batch batch = part.Read(2, 3);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t t = 0; t < 3; ++t) {
        const int64_t at = i * 3 + t, from = i * kLength + chunk * 3 + t;
        EXPECT_EQ(batch.tokens.data<int32_t>()[at], expected.tokens.data<int32_t>()[from]);
        EXPECT_EQ(batch.labels.data<int32_t>()[at], expected.labels.data<int32_t>()[from]);
        EXPECT_EQ(part.positions(3).data<int32_t>()[at], whole.positions(3).data<int32_t>()[from]);
      }
    }
  }
}

// Two ranks, two tokens at a time: 0 1 4 5 8 9 and 2 3 6 7 10 11, each with the token after it.
TEST_F(BatchesTest, StripesOfASequenceMakeTheWhole) {
  BatchReader whole(Options());
  const Model::Batch expected = whole.Read(2, 3);
  for (int chunk = 0; chunk < 2; ++chunk) {
    BatchReader::Options options = Options();
    options.chunk = chunk;
    options.chunks = 2;
    options.stripe = 2;
    BatchReader part(options);
    const Model::Batch batch = part.Read(2, 3);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t t = 0; t < 6; ++t) {
        const int64_t at = i * 6 + t, from = i * kLength + t / 2 * 4 + chunk * 2 + t % 2;
        EXPECT_EQ(batch.tokens.data<int32_t>()[at], expected.tokens.data<int32_t>()[from]);
        EXPECT_EQ(batch.labels.data<int32_t>()[at], expected.labels.data<int32_t>()[from]);
        EXPECT_EQ(part.positions(3).data<int32_t>()[at], whole.positions(3).data<int32_t>()[from]);
      }
    }
  }
}

}  // namespace
}  // namespace eyrie
