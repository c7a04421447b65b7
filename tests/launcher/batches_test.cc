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

class GivenLabelsTest : public BatchesTest {
 protected:
  // Token i of the stream is to predict 2 i, but every third one nothing.
  GivenLabelsTest() { WriteLabels(static_cast<int64_t>(position_of_.size()), 2 * 81); }
  void WriteLabels(int64_t count, int64_t largest) {
    IndexedDatasetWriter writer(prefix_ + ".labels", kVocab + 10);
    std::vector<int32_t> labels;
    for (int32_t i = 0; i < count; ++i) {
      labels.push_back(i % 3 == 0 ? 0
                                  : static_cast<int32_t>(std::min<int64_t>(2 * i, largest)) + 1);
    }
    writer.AddDocument(labels);
    writer.Finish();
  }
  BatchReader::Options Options() const {
    BatchReader::Options options = BatchesTest::Options();
    options.labels = config::DataConfig::GIVEN;
    return options;
  }
};

TEST_F(GivenLabelsTest, AreReadAndCountedOnEveryRank) {
  ASSERT_EQ(position_of_.size(), 81u);
  for (const auto& [chunks, stripe] : {std::pair<int, int64_t>{1, 0}, {1, 5}, {2, 0}, {3, 2}}) {
    int64_t counted = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      BatchReader::Options options = Options();
      options.chunk = chunk;
      options.chunks = chunks;
      options.stripe = stripe;
      BatchReader reader(options);
      reader.CheckPart(0, 1);
      EXPECT_EQ(reader.sampler().windows(), 6);  // no token after the last one is needed
      counted += reader.CountLabels(3, 3);
      const Model::Batch batch = reader.Read(3, 3);
      EXPECT_EQ(batch.labels.dim(1), kLength / chunks);
      for (int64_t i = 0; i < batch.labels.size(); ++i) {
        // Token i of the stream is i.
        const int32_t token = batch.tokens.data<int32_t>()[i];
        EXPECT_EQ(batch.labels.data<int32_t>()[i], token % 3 == 0 ? -1 : 2 * token);
      }
    }
    EXPECT_EQ(counted, 3 * 8);
  }
}

TEST_F(GivenLabelsTest, TakeNoMoreMemoryThanPlanned) {
  for (const auto labels : {config::DataConfig::NEXT_TOKEN, config::DataConfig::GIVEN}) {
    BatchReader::Options options = Options();
    options.labels = labels;
    EXPECT_EQ(BatchReader(options).buffer_bytes(), BatchReader::BufferBytes(3, kLength, 1, labels));
  }
}

TEST_F(GivenLabelsTest, RefusesLabelsThatDoNotFit) {
  WriteLabels(80, 1000);
  EXPECT_EQ(BadInput([&] { BatchReader reader(Options()); }),
            prefix_ + ".labels.bin: 80 labels, but " + prefix_ + ".bin has 81 tokens");
  std::filesystem::remove(prefix_ + ".labels.idx");
  EXPECT_NE(BadInput([&] { BatchReader reader(Options()); }).find(prefix_ + ".labels.idx"),
            std::string::npos);
  // A label is below the vocabulary's size.
  WriteLabels(81, 1000);
  BatchReader::Options options = Options();
  options.vocab_size = 140;
  BatchReader narrow(options);
  EXPECT_EQ(BadInput([&] { narrow.CheckPart(0, 1); }),
            prefix_ + ".labels.bin: label 70 is 141, not from 0 to model.vocab_size = 140");
  EXPECT_NO_THROW(narrow.Read(0, 1));
  EXPECT_NE(BadInput([&] { narrow.CountLabels(5, 2); }).find(prefix_ + ".labels.bin"),
            std::string::npos);
}

}  // namespace
}  // namespace eyrie
