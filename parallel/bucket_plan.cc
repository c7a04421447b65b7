#include "parallel/bucket_plan.h"

#include <algorithm>

#include "parallel/shard.h"

namespace eyrie {
namespace {

constexpr int64_t kAlignElements = 16;  // a cache line of float32

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

BucketPlan::BucketPlan(const ParamTable& table, MeshShape mesh, const BucketOptions& options)
    : owners_(options.zero ? mesh.data * mesh.sequence : 1) {
  for (const ParamSpec& spec : table.specs()) {
    // As large on every tensor rank.
    const int64_t size = LocalSlice(spec, mesh.tensor, 0).extent.size();
    ranges_.push_back({elements_, elements_ + size});
    elements_ += RoundUp(size, kAlignElements);
  }
  // Every share of every bucket starts at a cache line.
  const int64_t align = kAlignElements * owners_;
  elements_ = RoundUp(elements_, align);
  bucket_ = std::max(options.bucket_elements / align, int64_t{1}) * align;
}

BucketPlan::Range BucketPlan::bucket(int index) const {
  const int64_t begin = index * bucket_;
  return {begin, std::min(begin + bucket_, elements_)};
}

BucketPlan::Range BucketPlan::share(int bucket, int owner) const {
  const Range whole = this->bucket(bucket);
  const int64_t size = whole.size() / owners_;
  return {whole.begin + owner * size, whole.begin + (owner + 1) * size};
}

int BucketPlan::FirstBucketFrom(ParamId first) const {
  if (first == static_cast<ParamId>(ranges_.size())) return buckets();
  return static_cast<int>((offset(first) + bucket_ - 1) / bucket_);
}

std::vector<BucketPlan::Part> BucketPlan::Parts(int owner) const {
  std::vector<Part> parts;
  size_t param = 0;
  for (int index = 0; index < buckets(); ++index) {
    const Range mine = share(index, owner);
    while (param < ranges_.size() && ranges_[param].end <= mine.begin) ++param;
    for (size_t i = param; i < ranges_.size() && ranges_[i].begin < mine.end; ++i) {
      const int64_t begin = std::max(mine.begin, ranges_[i].begin);
      const int64_t end = std::min(mine.end, ranges_[i].end);
      if (begin >= end) continue;
      parts.push_back({static_cast<ParamId>(i),
                       index,
                       {begin - ranges_[i].begin, end - ranges_[i].begin},
                       begin,
                       owned_offset(index) + begin - mine.begin});
    }
  }
  return parts;
}

}  // namespace eyrie
