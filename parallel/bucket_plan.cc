#include "parallel/bucket_plan.h"

#include <algorithm>

#include "core/round.h"
#include "parallel/shard.h"

namespace eyrie {
BucketPlan::BucketPlan(const ParamTable& table, MeshShape mesh, const BucketOptions& options,
                       bool mixed)
    : owners_(options.zero ? mesh.data * mesh.sequence : 1), ranges_(table.specs().size()) {
  // Every share of every bucket starts at a cache line.
  const int64_t align = kAlign * owners_;
  bucket_ = std::max(options.bucket_elements / align, int64_t{1}) * align;
  const auto place = [&](bool first) {
    for (ParamId id = 0; id < static_cast<ParamId>(ranges_.size()); ++id) {
      const ParamSpec& spec = table.spec(id);
      if ((mixed && spec.full_precision) != first) continue;
      // As large on every tensor rank.
      const int64_t size = LocalSlice(spec, mesh.tensor, 0).extent.size();
      order_.push_back(id);
      ranges_[static_cast<size_t>(id)] = {elements_, elements_ + size};
      elements_ += RoundUp(size, kAlign);
    }
    elements_ = RoundUp(elements_, align);
  };
  place(/*first=*/true);
  full_elements_ = elements_;
  place(/*first=*/false);
}

BucketPlan::Range BucketPlan::bucket(int index) const {
  const bool full = index < full_buckets();
  const int64_t begin =
      full ? index * bucket_ : full_elements_ + (index - full_buckets()) * bucket_;
  return {begin, std::min(begin + bucket_, full ? full_elements_ : elements_)};
}

BucketPlan::Range BucketPlan::share(int bucket, int owner) const {
  const Range whole = this->bucket(bucket);
  const int64_t size = whole.size() / owners_;
  return {whole.begin + owner * size, whole.begin + (owner + 1) * size};
}

int BucketPlan::FirstBucketFrom(ParamId first) const {
  if (first == 0) return 0;
  for (ParamId id = first; id < static_cast<ParamId>(ranges_.size()); ++id) {
    if (offset(id) < full_elements_) continue;
    return full_buckets() + BucketsOf(offset(id) - full_elements_);
  }
  return buckets();
}

std::vector<BucketPlan::Part> BucketPlan::Parts(int owner) const {
  std::vector<Part> parts;
  size_t next = 0;
  for (int index = 0; index < buckets(); ++index) {
    const Range mine = share(index, owner);
    const auto range = [&](size_t i) { return ranges_[static_cast<size_t>(order_[i])]; };
    while (next < order_.size() && range(next).end <= mine.begin) ++next;
    for (size_t i = next; i < order_.size() && range(i).begin < mine.end; ++i) {
      const int64_t begin = std::max(mine.begin, range(i).begin);
      const int64_t end = std::min(mine.end, range(i).end);
      if (begin >= end) continue;
      parts.push_back({order_[i],
                       index,
                       {begin - range(i).begin, end - range(i).begin},
                       begin,
                       owned_offset(index) + begin - mine.begin});
    }
  }
  return parts;
}

}  // namespace eyrie
