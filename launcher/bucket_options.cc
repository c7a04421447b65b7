#include "launcher/bucket_options.h"

#include <algorithm>

namespace eyrie {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kMostBytes = 1024 * kMiB;  // MPI counts elements in 32 bits

}  // namespace

void ValidateBuckets(const config::ParallelConfig& parallel, ConfigErrors& errors) {
  if (parallel.bucket_bytes() < 0 || parallel.bucket_bytes() > kMostBytes) {
    errors.Add("parallel.bucket_bytes = ", parallel.bucket_bytes(), " must lie in [0, 1 GiB]");
  }
}

BucketOptions BucketOptionsOf(const config::ParallelConfig& parallel) {
  const int64_t replicas = int64_t{parallel.data()} * parallel.sequence();
  int64_t bytes = parallel.bucket_bytes();
  if (bytes == 0) bytes = std::clamp(replicas * kMiB, 25 * kMiB, kMostBytes);
  return {.zero = parallel.zero() == config::ParallelConfig::OPTIMIZER_STATE,
          .bucket_elements = bytes / static_cast<int64_t>(sizeof(float))};
}

}  // namespace eyrie
