#include "launcher/bucket_options.h"

#include <gtest/gtest.h>

#include <string>

#include "launcher/config.h"

namespace eyrie {
namespace {

config::ParallelConfig Parallel(int data, int sequence, int64_t bytes) {
  config::ParallelConfig parallel;
  parallel.set_data(data);
  parallel.set_sequence(sequence);
  parallel.set_bucket_bytes(bytes);
  return parallel;
}

TEST(BucketOptions, FollowTheConfiguration) {
  config::ParallelConfig parallel = Parallel(4, 2, 4096);
  EXPECT_FALSE(BucketOptionsOf(parallel).zero);
  EXPECT_EQ(BucketOptionsOf(parallel).bucket_elements, 1024);
  parallel.set_zero(config::ParallelConfig::OPTIMIZER_STATE);
  EXPECT_TRUE(BucketOptionsOf(parallel).zero);
}

// By default shares stay large where replicas are many.
TEST(BucketOptions, TheDefaultGrowsWithTheReplicas) {
  constexpr int64_t kMiB = int64_t{1} << 18;  // of float32
  EXPECT_EQ(BucketOptionsOf(Parallel(1, 1, 0)).bucket_elements, 25 * kMiB);
  EXPECT_EQ(BucketOptionsOf(Parallel(32, 4, 0)).bucket_elements, 128 * kMiB);
  EXPECT_EQ(BucketOptionsOf(Parallel(4096, 1, 0)).bucket_elements, 1024 * kMiB);
}

TEST(BucketOptions, BadSizesAreRefused) {
  for (const int64_t bytes : {int64_t{-1}, (int64_t{1} << 30) + 1}) {
    config::Config config;
    *config.mutable_parallel() = Parallel(1, 1, bytes);
    try {
      Resolve(config, 1);
      FAIL() << bytes;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      EXPECT_NE(std::string(error.what()).find("parallel.bucket_bytes"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace eyrie
